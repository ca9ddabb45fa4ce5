//! Writes objects as they come in, and takes them into local files: in bounded memory, whatever their size.

use std::path::Path as FilePath;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart, path::Path};
use thiserror::Error;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
};
use tracing::warn;

/// Bytes of a part. S3 takes no smaller one, but for the last.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// Parts of an object that are on their way to the store at once; with the one that is being filled they bound the
/// memory of an upload.
const PARTS_ON_THEIR_WAY: usize = 2;
/// Bytes of a file that are read at once.
const READ_BYTES: usize = 256 * 1024;

/// Why an object was not copied.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    /// The object store would not.
    #[error(transparent)]
    Store(#[from] object_store::Error),
    /// The local file would not.
    #[error("the local file failed: {0}")]
    File(#[from] std::io::Error),
}

/// Writes one object. It is there once [`ObjectWriter::finish`] has succeeded, and not before.
pub(crate) struct ObjectWriter {
    parts: WriteMultipart,
}

impl ObjectWriter {
    /// Begins an object.
    pub(crate) async fn begin(objects: &dyn ObjectStore, key: &Path) -> object_store::Result<Self> {
        let upload = objects.put_multipart(key).await?;
        Ok(Self { parts: WriteMultipart::new_with_chunk_size(upload, PART_BYTES) })
    }

    /// Adds bytes; waits while too much is on its way already.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> object_store::Result<()> {
        self.parts.wait_for_capacity(PARTS_ON_THEIR_WAY).await?;
        self.parts.write(bytes);
        Ok(())
    }

    /// Completes the object. If that fails, nothing is left of it.
    pub(crate) async fn finish(self) -> object_store::Result<()> {
        self.parts.finish().await.map(drop)
    }

    /// Gives the object up: nothing is left of it.
    pub(crate) async fn abort(self) {
        if let Err(error) = self.parts.abort().await {
            warn!(%error, "failed to clean up an object that was given up");
        }
    }
}

/// Stores a local file as an object.
pub(crate) async fn store_file(
    objects: &dyn ObjectStore,
    key: &Path,
    file: &FilePath,
) -> Result<(), CopyError> {
    let mut file = File::open(file).await?;
    let mut writer = ObjectWriter::begin(objects, key).await?;
    match copy(&mut file, &mut writer).await {
        Ok(()) => Ok(writer.finish().await?),
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
    }
}

async fn copy(file: &mut File, writer: &mut ObjectWriter) -> Result<(), CopyError> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while file.read_buf(&mut buffer).await? > 0 {
        writer.write(&buffer.split().freeze()).await?;
        buffer.reserve(READ_BYTES);
    }
    Ok(())
}

/// Takes an object into a local file.
pub(crate) async fn fetch_file(
    objects: &dyn ObjectStore,
    key: &Path,
    file: &FilePath,
) -> Result<(), CopyError> {
    let mut content = objects.get(key).await?.into_stream();
    let mut file = File::create(file).await?;
    while let Some(bytes) = content.try_next().await? {
        file.write_all(&bytes).await?;
    }
    Ok(file.flush().await?)
}

/// Removes an object that nothing names. If that fails it stays as waste, which is no error of the caller's.
pub(crate) async fn remove(objects: &dyn ObjectStore, key: &Path) {
    match objects.delete(key).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => warn!(%key, %error, "failed to remove an object that nothing names"),
    }
}

#[cfg(test)]
mod tests {
    use object_store::{local::LocalFileSystem, memory::InMemory};

    use super::*;

    #[tokio::test]
    async fn a_file_is_the_same_after_a_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        let content: Vec<u8> =
            (0..PART_BYTES * 2 + 12_345).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        tokio::fs::write(&before, &content).await.unwrap();
        let (objects, key) = (InMemory::new(), Path::from("a/b"));
        store_file(&objects, &key, &before).await.unwrap();
        fetch_file(&objects, &key, &after).await.unwrap();
        assert!(tokio::fs::read(&after).await.unwrap() == content);
    }

    #[tokio::test]
    async fn nothing_is_left_of_an_object_that_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let objects = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let mut writer = ObjectWriter::begin(&objects, &Path::from("a")).await.unwrap();
        for _ in 0..8 {
            writer.write(&Bytes::from(vec![7; 1024 * 1024])).await.unwrap();
        }
        writer.abort().await;
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn removing_what_is_not_there_is_fine() {
        remove(&InMemory::new(), &Path::from("a")).await;
    }
}
