//! Temporary directories, one per attempt to process an upload.

use std::{env, fs, io, path::Path, time::Duration};

use tempfile::TempDir;
use tracing::{info, warn};

const PREFIX: &str = "vidlog-media-";
/// Longer than any attempt takes: older directories were left behind by killed workers.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);

/// Creates a directory that is removed on drop.
pub(super) fn create() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir()
}

/// Removes directories that killed workers left behind.
pub(super) fn remove_abandoned() {
    remove_older(&env::temp_dir(), ABANDONED_AFTER);
}

fn remove_older(parent: &Path, age: Duration) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_directory_older(&entry, age) {
            let directory = entry.path();
            match fs::remove_dir_all(&directory) {
                Ok(()) => info!(directory = %directory.display(), "abandoned temporary directory removed"),
                Err(error) => {
                    warn!(directory = %directory.display(), %error, "failed to remove abandoned temporary directory");
                }
            }
        }
    }
}

fn is_directory_older(entry: &fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().ok().filter(fs::Metadata::is_dir).and_then(|found| found.modified().ok());
    modified.and_then(|modified| modified.elapsed().ok()).is_some_and(|elapsed| elapsed >= age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_abandoned_directories_are_removed() {
        let parent = TempDir::new().unwrap();
        let path = |name: &str| parent.path().join(name);
        for name in ["vidlog-media-abc/deep", "another"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("vidlog-media-file"), "").unwrap();
        remove_older(parent.path(), Duration::from_hours(1));
        assert!(path("vidlog-media-abc").exists());
        remove_older(parent.path(), Duration::ZERO);
        assert!(!path("vidlog-media-abc").exists());
        assert!(path("vidlog-media-file").exists() && path("another").exists());
    }
}
