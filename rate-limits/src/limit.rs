//! All limits, and which of them a call is charged to.

/// A limit. Its name appears in the `RateLimit` headers, in metrics and in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Reads of a user.
    ReadUser,
    /// Reads from an address.
    ReadAddress,
    /// Commands of a user.
    WriteUser,
    /// Commands from an address.
    WriteAddress,
    /// Uploads of a user.
    UploadUser,
    /// Uploads from an address.
    UploadAddress,
    /// Logins to an account.
    LoginAccount,
    /// Logins from an address.
    LoginAddress,
    /// Registrations from an address.
    RegisterAddress,
    /// Commands of a user with an `Idempotency-Key`: bounds what Redis stores for them.
    IdempotencyKeys,
}

/// What a route does; decides the limits that its calls are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A read.
    Read,
    /// A command.
    Write,
    /// An upload.
    Upload,
    /// A login.
    Login,
    /// A registration.
    Register,
}

impl Limit {
    /// Every limit, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::ReadUser,
        Self::ReadAddress,
        Self::WriteUser,
        Self::WriteAddress,
        Self::UploadUser,
        Self::UploadAddress,
        Self::LoginAccount,
        Self::LoginAddress,
        Self::RegisterAddress,
        Self::IdempotencyKeys,
    ];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadUser => "read-user",
            Self::ReadAddress => "read-address",
            Self::WriteUser => "write-user",
            Self::WriteAddress => "write-address",
            Self::UploadUser => "upload-user",
            Self::UploadAddress => "upload-address",
            Self::LoginAccount => "login-account",
            Self::LoginAddress => "login-address",
            Self::RegisterAddress => "register-address",
            Self::IdempotencyKeys => "idempotency-keys",
        }
    }
}

impl Class {
    /// The limit of an address.
    pub(crate) const fn of_address(self) -> Limit {
        match self {
            Self::Read => Limit::ReadAddress,
            Self::Write => Limit::WriteAddress,
            Self::Upload => Limit::UploadAddress,
            Self::Login => Limit::LoginAddress,
            Self::Register => Limit::RegisterAddress,
        }
    }

    /// The limit of a user.
    pub(crate) const fn of_user(self) -> Option<Limit> {
        match self {
            Self::Read => Some(Limit::ReadUser),
            Self::Write => Some(Limit::WriteUser),
            Self::Upload => Some(Limit::UploadUser),
            Self::Login | Self::Register => None,
        }
    }
}
