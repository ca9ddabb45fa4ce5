//! URLs of media. They are built on read, so the log contains object keys only.

/// Object keys of the placeholders that are built into the program.
pub mod builtin {
    /// The avatar of a user without one.
    pub const AVATAR: &str = "builtin/avatar.png";
    /// The background image of a user without one.
    pub const BACKGROUND: &str = "builtin/background.png";
    /// The cover of a video that is being processed.
    pub const PROCESSING_COVER: &str = "builtin/processing.png";
    /// The clip in place of a video that is being processed.
    pub const PROCESSING_CLIP: &str = "builtin/processing.mp4";
    /// The cover of a rejected video.
    pub const REJECTED_COVER: &str = "builtin/rejected.png";
    /// The clip in place of a rejected video.
    pub const REJECTED_CLIP: &str = "builtin/rejected.mp4";
}

/// Builds the URLs of object keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaUrls {
    base: String,
}

impl MediaUrls {
    /// Creates URLs under a public base, such as `https://media.example.com`.
    pub fn new(base: &str) -> Self {
        Self { base: base.trim_end_matches('/').to_owned() }
    }

    /// Returns the absolute URL of an object key.
    pub fn url(&self, key: &str) -> String {
        format!("{}/static/{key}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_absolute() {
        for base in ["http://h:1", "http://h:1/"] {
            assert_eq!(MediaUrls::new(base).url("videos/1/play.mp4"), "http://h:1/static/videos/1/play.mp4");
        }
    }
}
