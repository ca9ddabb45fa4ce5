//! An external merge sort: orders more entries than fit in memory, with the help of a temporary file.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    env::temp_dir,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
};

use anyhow::Context;

/// Bytes per read of a sorted run. A run holds some hundred times as much, so the buffers of all runs stay
/// small.
const READ_AHEAD: usize = 16 << 10;

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// Collects entries in any order and returns them ordered by key; entries of one key stay in the order they
/// came in.
///
/// Entries beyond the given memory are written, sorted, to an unnamed file in `TMPDIR`. The operating system
/// removes it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Sorter {
    /// Limit of the bytes of entries in memory, for [`Sorter::is_full`].
    memory: usize,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    file: Option<Arc<File>>,
    /// Ranges of the sorted runs in the file, oldest first.
    runs: Vec<Range<u64>>,
}

/// Location of an entry in the bytes: the key, directly followed by the value.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: usize,
    key: usize,
    value: usize,
}

impl Sorter {
    /// Creates a sorter that holds about the given number of bytes in memory.
    pub(crate) const fn new(memory: usize) -> Self {
        Self { memory, bytes: Vec::new(), slots: Vec::new(), file: None, runs: Vec::new() }
    }

    /// Adds an entry. Never blocks: the caller spills once the sorter is full.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.slots.push(Slot { start: self.bytes.len(), key: key.len(), value: value.len() });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    /// Returns whether the entries in memory exceed the limit.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() + self.slots.len() * size_of::<Slot>() >= self.memory
    }

    /// Writes the entries in memory to the file as one sorted run. Blocking.
    pub(crate) fn spill(&mut self) -> anyhow::Result<()> {
        if self.slots.is_empty() {
            return Ok(());
        }
        self.sort();
        self.write_run()
            .with_context(|| format!("failed to write a temporary file in {}", temp_dir().display()))?;
        self.bytes.clear();
        self.slots.clear();
        Ok(())
    }

    /// Returns all entries in order. Blocking.
    pub(crate) fn sorted(mut self) -> anyhow::Result<Sorted> {
        let mut runs = Vec::new();
        if let Some(file) = self.file.clone() {
            self.spill()?;
            runs.extend(self.runs.into_iter().map(|range| Run::File(RunReader::new(file.clone(), range))));
        } else {
            self.sort();
            runs.push(Run::Memory { bytes: self.bytes, slots: self.slots.into_iter() });
        }
        let mut sorted = Sorted { heads: BinaryHeap::with_capacity(runs.len()), runs };
        for run in 0..sorted.runs.len() {
            sorted.advance(run)?;
        }
        Ok(sorted)
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |slot: &Slot| &bytes[slot.start..slot.start + slot.key];
        self.slots.sort_unstable_by(|a, b| key(a).cmp(key(b)).then(a.start.cmp(&b.start)));
    }

    fn write_run(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(Arc::new(tempfile::tempfile()?)).clone(),
        };
        let start = self.runs.last().map_or(0, |run| run.end);
        let (mut writer, mut end) = (BufWriter::with_capacity(1 << 18, &*file), start);
        let mut header = Vec::with_capacity(16);
        let mut previous: &[u8] = &[];
        for Slot { start, key, value } in &self.slots {
            let (key, value) = self.bytes[*start..start + key + value].split_at(*key);
            // Neighboring keys share long prefixes, so a key is written without the prefix that it shares
            // with the previous one.
            let shared = previous.iter().zip(key).take_while(|(previous, own)| previous == own).count();
            header.clear();
            for number in [shared, key.len() - shared, value.len()] {
                push_number(&mut header, number);
            }
            for part in [&header, &key[shared..], value] {
                writer.write_all(part)?;
                end += part.len() as u64;
            }
            previous = key;
        }
        writer.flush()?;
        self.runs.push(start..end);
        Ok(())
    }
}

/// The entries of a sorter, in order.
pub(crate) struct Sorted {
    runs: Vec<Run>,
    /// Next entry of each run, the lowest first; of equal keys, that of the older run first.
    heads: BinaryHeap<Reverse<Head>>,
}

/// An entry's key, its run and its value.
type Head = (Vec<u8>, usize, Vec<u8>);

enum Run {
    Memory { bytes: Vec<u8>, slots: std::vec::IntoIter<Slot> },
    File(RunReader),
}

impl Sorted {
    fn advance(&mut self, run: usize) -> anyhow::Result<()> {
        let next = match &mut self.runs[run] {
            Run::Memory { bytes, slots } => slots.next().map(|Slot { start, key, value }| {
                let (key, value) = bytes[start..start + key + value].split_at(key);
                (key.to_vec(), value.to_vec())
            }),
            Run::File(reader) => reader.next().context("failed to read a temporary file")?,
        };
        self.heads.extend(next.map(|(key, value)| Reverse((key, run, value))));
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = anyhow::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((key, run, value)) = self.heads.pop()?;
        Some(self.advance(run).map(|()| (key, value)))
    }
}

/// Reads a sorted run.
struct RunReader {
    reader: BufReader<Section>,
    /// The last key.
    key: Vec<u8>,
}

impl RunReader {
    fn new(file: Arc<File>, range: Range<u64>) -> Self {
        Self { reader: BufReader::with_capacity(READ_AHEAD, Section { file, range }), key: Vec::new() }
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let (shared, rest, value) = (self.number()?, self.number()?, self.number()?);
        self.key.resize(shared + rest, 0);
        self.reader.read_exact(&mut self.key[shared..])?;
        let mut content = vec![0; value];
        self.reader.read_exact(&mut content)?;
        Ok(Some((self.key.clone(), content)))
    }

    fn number(&mut self) -> io::Result<usize> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            number |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
            shift += 7;
        }
    }
}

/// Appends a number in 7-bit groups, the lowest first (LEB128).
fn push_number(bytes: &mut Vec<u8>, mut number: usize) {
    loop {
        let group = (number % 0x80).to_le_bytes()[0];
        number >>= 7;
        if number == 0 {
            bytes.push(group);
            return;
        }
        bytes.push(group | 0x80);
    }
}

/// Part of a file. Several may be read at the same time.
struct Section {
    file: Arc<File>,
    range: Range<u64>,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.range.start)?;
        if read == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.range.start += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(entries: &[Entry], memory: usize) -> Vec<Entry> {
        let mut sorter = Sorter::new(memory);
        for (key, value) in entries {
            sorter.push(key, value);
            if sorter.is_full() {
                sorter.spill().unwrap();
            }
        }
        sorter.sorted().unwrap().map(Result::unwrap).collect()
    }

    proptest! {
        /// From everything in memory to a run for each entry.
        #[test]
        fn external_sort_equals_a_stable_sort_in_memory(
            entries in prop::collection::vec(("[ab]{0,3}", "[a-z]{0,200}"), 0..60),
            memory in 0..4000_usize,
        ) {
            let entries: Vec<Entry> =
                entries.into_iter().map(|(key, value)| (key.into_bytes(), value.into_bytes())).collect();
            let mut expected = entries.clone();
            expected.sort_by(|(a, _), (b, _)| a.cmp(b));
            prop_assert_eq!(sorted(&entries, memory), expected);
        }
    }
}
