//! Settings that both APIs must have alike.

use clap::Args;
use vidlog_service_kit::config::Secret;

/// What an API trusts, and where media are.
#[derive(Args, Clone, Debug)]
pub struct ApiConfig {
    /// Base of media addresses, such as `https://media.example.com`; by default `http://` and the listen address.
    #[arg(long, env = "VIDLOG_PUBLIC_BASE")]
    pub public_base: Option<String>,
    /// Where media are: `file:///…` or `s3://bucket`, with the usual `AWS_*` variables.
    #[arg(long, env = "VIDLOG_OBJECT_STORE")]
    pub object_store: String,
    /// Keys of tokens, `kid:secret,kid2:secret2`: the first signs, all verify.
    #[arg(long, env = "VIDLOG_JWT_KEYS", hide_env_values = true)]
    pub jwt_keys: Secret,
}

impl ApiConfig {
    /// The base of media addresses, where the process listens on an address.
    pub fn public_base(&self, listen: &str) -> String {
        self.public_base.clone().filter(|base| !base.is_empty()).unwrap_or_else(|| format!("http://{listen}"))
    }
}
