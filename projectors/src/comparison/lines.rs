//! The lines of a view, collected in any order.

use std::{iter::Peekable, mem};

use anyhow::Context;
use futures::{Stream, TryStreamExt, stream};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    line::{Line, LineKey},
    sorter::{Sorted, Sorter},
};

/// Number of lines per message to the reader.
const PAGE: usize = 1000;
/// Prefix of the stored content of a line that exists; a removed line is stored without it.
const EXISTS: u8 = b'=';

/// Lines of a view. If a line is set or removed several times, the last call counts.
///
/// The lines are in memory up to a limit, and beyond it in a temporary file.
#[derive(Debug)]
pub struct Lines {
    sorter: Sorter,
}

impl Lines {
    /// Creates an empty collection. Holds about the given number of bytes of lines in memory.
    pub const fn new(memory: usize) -> Self {
        Self { sorter: Sorter::new(memory) }
    }

    /// Adds a line or replaces its content. Does not spill; the caller calls [`Lines::spill_if_full`].
    pub fn set(&mut self, key: &LineKey, content: &str) {
        let mut stored = Vec::with_capacity(content.len() + 1);
        stored.push(EXISTS);
        stored.extend_from_slice(content.as_bytes());
        self.sorter.push(key.as_bytes(), &stored);
    }

    /// Removes a line, whether it exists or not. Does not spill, either.
    pub fn remove(&mut self, key: &LineKey) {
        self.sorter.push(key.as_bytes(), &[]);
    }

    /// Writes the lines in memory to the file if they exceed the limit. Blocking.
    pub fn spill_if_full(&mut self) -> anyhow::Result<()> {
        if self.sorter.is_full() { self.sorter.spill() } else { Ok(()) }
    }

    /// Runs [`Lines::spill_if_full`] on a blocking thread.
    pub async fn spill_if_full_on_blocking_thread(&mut self) -> anyhow::Result<()> {
        if !self.sorter.is_full() {
            return Ok(());
        }
        let mut sorter = mem::replace(&mut self.sorter, Sorter::new(0));
        let spill = spawn_blocking(move || sorter.spill().map(|()| sorter));
        self.sorter = spill.await.context("sorting lines panicked")??;
        Ok(())
    }

    /// Returns the lines in order, each once. Blocking.
    pub fn sorted(self) -> anyhow::Result<SortedLines> {
        Ok(SortedLines { entries: self.sorter.sorted()?.peekable() })
    }

    /// Returns the lines in order, each once. Sorts them on a blocking thread.
    pub fn into_stream(self) -> impl Stream<Item = anyhow::Result<Line>> + Send {
        stream_from(move || self.sorted())
    }
}

/// Lines in order, each once.
pub struct SortedLines {
    entries: Peekable<Sorted>,
}

impl Iterator for SortedLines {
    type Item = anyhow::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (key, stored) = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let is_replaced =
                |next: &anyhow::Result<(Vec<u8>, Vec<u8>)>| matches!(next, Ok((next, _)) if *next == key);
            if self.entries.peek().is_some_and(is_replaced) {
                continue;
            }
            if let Some((&EXISTS, content)) = stored.split_first() {
                let content = String::from_utf8_lossy(content).into_owned();
                return Some(Ok((LineKey::from_bytes(key), content)));
            }
        }
    }
}

/// Produces lines on a blocking thread and sends them page by page.
pub(crate) fn stream_from(
    make: impl FnOnce() -> anyhow::Result<SortedLines> + Send + 'static,
) -> impl Stream<Item = anyhow::Result<Line>> + Send {
    let (sender, receiver) = mpsc::channel(2);
    let task = spawn_blocking(move || {
        let mut lines = make()?;
        loop {
            let page = lines.by_ref().take(PAGE).collect::<anyhow::Result<Vec<Line>>>()?;
            // The receiver is gone, so no reader needs the lines.
            if page.is_empty() || sender.blocking_send(page).is_err() {
                return anyhow::Ok(());
            }
        }
    });
    let pages = stream::try_unfold((receiver, Some(task)), |(mut receiver, task)| async move {
        if let Some(page) = receiver.recv().await {
            return Ok(Some((stream::iter(page.into_iter().map(anyhow::Ok)), (receiver, task))));
        }
        // The channel also closes if the thread fails: missing lines must not count as absent.
        if let Some(task) = task {
            task.await.context("sorting lines panicked")??;
        }
        anyhow::Ok(None)
    });
    pages.try_flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(member: &str) -> LineKey {
        LineKey::member("n:{s01}:likers:1", member)
    }

    #[tokio::test]
    async fn last_content_of_a_line_counts() {
        for memory in [0, 1 << 20] {
            let mut lines = Lines::new(memory);
            for (member, content) in [("b", "1"), ("a", "1"), ("c", "1"), ("b", "2"), ("d", "1")] {
                lines.set(&key(member), content);
                lines.spill_if_full_on_blocking_thread().await.unwrap();
            }
            lines.remove(&key("c"));
            lines.remove(&key("e"));
            let lines: Vec<_> = lines.into_stream().try_collect().await.unwrap();
            let expected = [("a", "1"), ("b", "2"), ("d", "1")];
            assert_eq!(lines, expected.map(|(member, content)| (key(member), content.to_owned())));
        }
    }

    #[tokio::test]
    async fn failure_while_sorting_is_not_the_end_of_the_lines() {
        let lines = stream_from(|| anyhow::bail!("no space left on device"));
        let error = lines.try_collect::<Vec<Line>>().await.unwrap_err();
        assert_eq!(error.to_string(), "no space left on device");
    }
}
