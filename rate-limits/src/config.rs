//! The settings of rate limits. They must be equal in all processes that serve an API.

use clap::Args;
use vidlog_service_kit::serve::Peers;

use crate::{
    address::{ForwardedHeader, Proxies},
    limit::Limit,
    quota::Quota,
};

/// Quotas, as `calls/window` (a window is a number with s, m, h or d) or `off`. A caller may use a whole quota at once and
/// regains it evenly over the window.
#[derive(Args, Clone, Debug)]
pub struct RateLimitConfig {
    /// Reads of a user.
    #[arg(long, env = "VIDLOG_LIMIT_READ_USER", default_value_t = Self::default().limit_read_user)]
    pub limit_read_user: Quota,
    /// Reads from an address. Many phones can share one. An IPv6 address counts as its /64 network.
    #[arg(long, env = "VIDLOG_LIMIT_READ_ADDRESS", default_value_t = Self::default().limit_read_address)]
    pub limit_read_address: Quota,
    /// Commands of a user, without uploads.
    #[arg(long, env = "VIDLOG_LIMIT_WRITE_USER", default_value_t = Self::default().limit_write_user)]
    pub limit_write_user: Quota,
    /// Commands from an address, without uploads, logins and registrations.
    #[arg(long, env = "VIDLOG_LIMIT_WRITE_ADDRESS", default_value_t = Self::default().limit_write_address)]
    pub limit_write_address: Quota,
    /// Uploads of a user.
    #[arg(long, env = "VIDLOG_LIMIT_UPLOAD_USER", default_value_t = Self::default().limit_upload_user)]
    pub limit_upload_user: Quota,
    /// Uploads from an address.
    #[arg(long, env = "VIDLOG_LIMIT_UPLOAD_ADDRESS", default_value_t = Self::default().limit_upload_address)]
    pub limit_upload_address: Quota,
    /// Logins to an account, from any address, whether it exists or not.
    #[arg(long, env = "VIDLOG_LIMIT_LOGIN_ACCOUNT", default_value_t = Self::default().limit_login_account)]
    pub limit_login_account: Quota,
    /// Logins from an address.
    #[arg(long, env = "VIDLOG_LIMIT_LOGIN_ADDRESS", default_value_t = Self::default().limit_login_address)]
    pub limit_login_address: Quota,
    /// Registrations from an address.
    #[arg(long, env = "VIDLOG_LIMIT_REGISTER_ADDRESS", default_value_t = Self::default().limit_register_address)]
    pub limit_register_address: Quota,
    /// Commands of a user with an `Idempotency-Key`. Redis stores up to 4 KB for each, for a day.
    #[arg(long, env = "VIDLOG_LIMIT_IDEMPOTENCY_KEYS", default_value_t = Self::default().limit_idempotency_keys)]
    pub limit_idempotency_keys: Quota,
    /// Number of proxies in front of this process that append the client's address to the header below. Each must be
    /// one of yours: a client can forge the entries before theirs. 0: the address of the connection counts; calls that a
    /// proxy in a private network forwards then have no limit of an address.
    #[arg(long, env = "VIDLOG_TRUSTED_HOPS", default_value_t = 0)]
    pub trusted_hops: u8,
    /// The header to which the trusted proxies append. The other one is ignored, because a proxy passes on what a
    /// client sends in it.
    #[arg(long, env = "VIDLOG_FORWARDED_HEADER", value_enum, default_value_t = ForwardedHeader::XForwardedFor)]
    pub forwarded_header: ForwardedHeader,
}

const MINUTE: u32 = 60;
const HOUR: u32 = 60 * MINUTE;
const DAY: u32 = 24 * HOUR;

impl Default for RateLimitConfig {
    /// Quotas that no phone reaches, and for addresses no network of some thousand phones.
    fn default() -> Self {
        Self {
            limit_read_user: Quota::per(6000, 5 * MINUTE),
            limit_read_address: Quota::per(60_000, MINUTE),
            limit_write_user: Quota::per(1200, 5 * MINUTE),
            limit_write_address: Quota::per(12_000, MINUTE),
            limit_upload_user: Quota::per(200, HOUR),
            limit_upload_address: Quota::per(2000, HOUR),
            limit_login_account: Quota::per(30, 5 * MINUTE),
            limit_login_address: Quota::per(600, 10 * MINUTE),
            limit_register_address: Quota::per(1000, HOUR),
            limit_idempotency_keys: Quota::per(2000, DAY),
            trusted_hops: 0,
            forwarded_header: ForwardedHeader::XForwardedFor,
        }
    }
}

impl RateLimitConfig {
    /// No limits.
    pub fn off() -> Self {
        Self {
            limit_read_user: Quota::OFF,
            limit_read_address: Quota::OFF,
            limit_write_user: Quota::OFF,
            limit_write_address: Quota::OFF,
            limit_upload_user: Quota::OFF,
            limit_upload_address: Quota::OFF,
            limit_login_account: Quota::OFF,
            limit_login_address: Quota::OFF,
            limit_register_address: Quota::OFF,
            limit_idempotency_keys: Quota::OFF,
            ..Self::default()
        }
    }

    pub(crate) const fn quota(&self, limit: Limit) -> Quota {
        match limit {
            Limit::ReadUser => self.limit_read_user,
            Limit::ReadAddress => self.limit_read_address,
            Limit::WriteUser => self.limit_write_user,
            Limit::WriteAddress => self.limit_write_address,
            Limit::UploadUser => self.limit_upload_user,
            Limit::UploadAddress => self.limit_upload_address,
            Limit::LoginAccount => self.limit_login_account,
            Limit::LoginAddress => self.limit_login_address,
            Limit::RegisterAddress => self.limit_register_address,
            Limit::IdempotencyKeys => self.limit_idempotency_keys,
        }
    }

    /// Returns what connects to the server: the nearest of the trusted proxies, or clients.
    pub const fn peers(&self) -> Peers {
        match self.trusted_hops {
            0 => Peers::Clients,
            _ => Peers::Proxies,
        }
    }

    pub(crate) const fn proxies(&self) -> Proxies {
        Proxies { trusted_hops: self.trusted_hops as usize, header: self.forwarded_header }
    }
}
