//! Folders for temporary files, one for each attempt at an upload.

use std::{env, fs, io, path::Path, time::Duration};

use tempfile::TempDir;
use tracing::{info, warn};

const PREFIX: &str = "vidlog-media-";
/// No attempt takes so long. A folder that is older was left by a worker that was killed.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);

/// Makes a folder that is removed when it is dropped.
pub(super) fn make() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir()
}

/// Removes what workers left behind that were killed.
pub(super) fn remove_abandoned() {
    remove_older(&env::temp_dir(), ABANDONED_AFTER);
}

fn remove_older(parent: &Path, age: Duration) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_folder_older(&entry, age) {
            let folder = entry.path();
            match fs::remove_dir_all(&folder) {
                Ok(()) => info!(folder = %folder.display(), "removed an abandoned folder"),
                Err(error) => {
                    warn!(folder = %folder.display(), %error, "failed to remove an abandoned folder");
                }
            }
        }
    }
}

fn is_folder_older(entry: &fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().ok().filter(fs::Metadata::is_dir).and_then(|found| found.modified().ok());
    modified.and_then(|modified| modified.elapsed().ok()).is_some_and(|elapsed| elapsed >= age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_abandoned_folders_are_removed() {
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
