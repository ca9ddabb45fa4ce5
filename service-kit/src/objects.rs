//! The object store: a local folder or an S3 bucket.

use std::{env, fs, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use url::Url;

/// Limit on connecting to a bucket: a publish must be answered within 5 s, also when it fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit on a read from a bucket without data. A whole request has no limit: a slow client may take minutes for a
/// video.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens an object store: `file:///folder`, created if it is missing, or `s3://bucket/folder` with settings from
/// `AWS_*` variables.
///
/// Object keys are relative to the folder. A bucket is connected to on first use.
pub fn open(address: &str) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let url = Url::parse(address)
        .with_context(|| format!("failed to read the object store's address {address:?}"))?;
    match ObjectStoreScheme::parse(&url) {
        Ok((ObjectStoreScheme::Local, _)) => open_folder(&url),
        Ok((ObjectStoreScheme::AmazonS3, folder)) => open_bucket(&url, folder),
        _ => bail!("the object store's address {address:?} is neither file:///folder nor s3://bucket"),
    }
    .with_context(|| format!("failed to open the object store {address:?}"))
}

/// Opens a local folder. Writes are synced to disk, because an event must never refer to an object that a crash lost.
fn open_folder(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let Ok(folder) = url.to_file_path() else {
        bail!("the address has no absolute folder");
    };
    fs::create_dir_all(&folder).context("failed to create the folder")?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true)))
}

fn open_bucket(url: &Url, folder: Path) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT);
    let retry =
        RetryConfig { max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let defaults = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
    let builder = settings().fold(defaults, |builder, (key, value)| builder.with_config(key, value));
    Ok(Arc::new(PrefixStore::new(builder.with_url(url.as_str()).build()?, folder)))
}

fn settings() -> impl Iterator<Item = (AmazonS3ConfigKey, String)> {
    env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("AWS_"))?.to_ascii_lowercase();
        Some((name.parse().ok()?, value.into_string().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_folder_is_created() {
        let folder = env::temp_dir().join(format!("vidlog-objects-{}/deep", std::process::id()));
        let url = Url::from_file_path(&folder).unwrap();
        assert!(open(url.as_str()).is_ok());
        assert!(folder.is_dir());
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    #[test]
    fn invalid_address_is_in_the_error() {
        for address in ["objects", "memory:///", "https://example.com/objects"] {
            let error = open(address).err().map(|error| format!("{error:#}"));
            assert!(error.is_some_and(|error| error.contains(address)), "{address}");
        }
    }

    #[test]
    fn bucket_opens_without_a_connection() {
        assert!(open("s3://bucket/folder").is_ok());
    }
}
