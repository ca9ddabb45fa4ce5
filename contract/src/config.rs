//! Settings that both APIs share. They must be equal in both.

use clap::Args;
use vidlog_service_kit::{config::Secret, serve::ConnectionLimits};

use crate::http::Origins;

/// The token keys, the object store, the public address of media, and limits on connections.
#[derive(Args, Clone, Debug)]
pub struct ApiConfig {
    /// Base of media URLs, such as `https://media.example.com`; by default `http://` and the listen address.
    #[arg(long, env = "VIDLOG_PUBLIC_BASE")]
    pub public_base: Option<String>,
    /// URL of the object store: `file:///…` or `s3://bucket`, with the usual `AWS_*` variables.
    #[arg(long, env = "VIDLOG_OBJECT_STORE")]
    pub object_store: String,
    /// Token keys, `kid:secret,kid2:secret2`: the first signs, all verify.
    #[arg(long, env = "VIDLOG_JWT_KEYS", hide_env_values = true)]
    pub jwt_keys: Secret,
    /// Origins that may call the API from a browser, comma separated: `https://app.example`, or `*` for any.
    #[arg(long, env = "VIDLOG_CORS_ORIGINS", default_value = "")]
    pub cors_origins: Origins,
    /// Limits on client connections.
    #[command(flatten)]
    pub connections: ConnectionLimits,
}

impl ApiConfig {
    /// Returns the base of media URLs for a process that listens on an address.
    pub fn public_base(&self, listen: &str) -> String {
        self.public_base.clone().filter(|base| !base.is_empty()).unwrap_or_else(|| format!("http://{listen}"))
    }
}
