//! Streams objects into the object store and into local files, in bounded memory.

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

/// Size of a part: the minimum that S3 accepts for all but the last.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// Parts in flight per object; these and the part that is being filled bound the memory of an upload.
const MAX_PARTS_IN_FLIGHT: usize = 2;
/// Size of the read buffer for a file.
const READ_BYTES: usize = 256 * 1024;

/// Error of copying between a file and the object store.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] object_store::Error),
    /// The local file failed.
    #[error("the local file failed: {0}")]
    File(#[from] std::io::Error),
}

/// Writes one object, which exists once [`ObjectWriter::finish`] has succeeded.
pub(crate) struct ObjectWriter {
    parts: WriteMultipart,
}

impl ObjectWriter {
    /// Starts an object.
    pub(crate) async fn begin(objects: &dyn ObjectStore, key: &Path) -> object_store::Result<Self> {
        let upload = objects.put_multipart(key).await?;
        Ok(Self { parts: WriteMultipart::new_with_chunk_size(upload, PART_BYTES) })
    }

    /// Adds bytes; waits while too many parts are in flight.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> object_store::Result<()> {
        self.parts.wait_for_capacity(MAX_PARTS_IN_FLIGHT).await?;
        self.parts.write(bytes);
        Ok(())
    }

    /// Completes the object, or leaves nothing behind if that fails.
    pub(crate) async fn finish(self) -> object_store::Result<()> {
        self.parts.finish().await.map(drop)
    }

    /// Discards the object and its parts.
    pub(crate) async fn abort(self) {
        if let Err(error) = self.parts.abort().await {
            warn!(%error, "failed to abort object upload");
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

/// Copies an object to a local file.
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

/// Deletes an orphaned object. Best effort: a failure leaves the orphan behind.
pub(crate) async fn delete_orphan(objects: &dyn ObjectStore, key: &Path) {
    match objects.delete(key).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => warn!(%key, %error, "failed to delete orphaned object"),
    }
}

#[cfg(test)]
mod tests {
    use object_store::{local::LocalFileSystem, memory::InMemory};

    use super::*;

    #[tokio::test]
    async fn file_round_trips() {
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
    async fn aborted_object_leaves_nothing_behind() {
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
    async fn deleting_a_missing_object_succeeds() {
        delete_orphan(&InMemory::new(), &Path::from("a")).await;
    }
}
