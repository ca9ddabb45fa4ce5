//! The addresses of media: made when they are read, so that the log holds object keys only.

/// Object keys of the pictures and clips that the program brings with it.
pub mod builtin {
    /// The picture of a user without one.
    pub const AVATAR: &str = "builtin/avatar.png";
    /// The picture at the top of the page of a user without one.
    pub const BACKGROUND: &str = "builtin/background.png";
    /// The cover of a video that is still being processed.
    pub const PROCESSING_COVER: &str = "builtin/processing.png";
    /// What plays instead of a video that is still being processed.
    pub const PROCESSING_CLIP: &str = "builtin/processing.mp4";
    /// The cover of a video that was rejected.
    pub const REJECTED_COVER: &str = "builtin/rejected.png";
    /// What plays instead of a video that was rejected.
    pub const REJECTED_CLIP: &str = "builtin/rejected.mp4";
}

/// Makes addresses of object keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaUrls {
    base: String,
}

impl MediaUrls {
    /// Addresses under a public base, such as `https://media.example.com`.
    pub fn new(base: &str) -> Self {
        Self { base: base.trim_end_matches('/').to_owned() }
    }

    /// The absolute address of an object key.
    pub fn url(&self, key: &str) -> String {
        format!("{}/static/{key}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_absolute() {
        for base in ["http://h:1", "http://h:1/"] {
            assert_eq!(MediaUrls::new(base).url("videos/1/play.mp4"), "http://h:1/static/videos/1/play.mp4");
        }
    }
}
