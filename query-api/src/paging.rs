//! Keyset pagination of lists.
//!
//! A cursor is the sort key of the last item, not an offset, so inserted and deleted items neither repeat nor skip others.

use std::cmp::Reverse;

use vidlog_contract::{ApiError, Params};

/// The sort key of an item. Lists are sorted by descending score, then by the id's digits in descending lexicographic
/// order, as Redis sorts a ZSET. MySQL sorts ids as numbers, in the order of an index. For ids with the same number of
/// digits, as all of one time have, both orders are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SortKey {
    pub(crate) score: i64,
    pub(crate) id: i64,
}

impl SortKey {
    /// Returns whether this item follows another in the list.
    pub(crate) fn is_after(self, other: Self) -> bool {
        self.order() > other.order()
    }

    /// Returns the key for `sort_by_key`.
    pub(crate) fn order(self) -> (Reverse<i64>, Reverse<String>) {
        (Reverse(self.score), Reverse(self.id.to_string()))
    }

    fn to_cursor(self) -> String {
        format!("{:016x}{:016x}", self.score, self.id)
    }

    fn from_cursor(cursor: &str) -> Option<Self> {
        if cursor.len() != 32 || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let (score, id) = cursor.split_at_checked(16)?;
        let number = |text| i64::from_str_radix(text, 16).ok();
        Some(Self { score: number(score)?, id: number(id)? })
    }
}

/// The requested page of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// The last item of the previous page.
    pub(crate) after: Option<SortKey>,
    limit: Option<usize>,
    max_items: usize,
}

impl Page {
    /// Parses the parameters `limit` and `cursor` of a list that returns at most `max_items` items.
    pub(crate) fn from_params(params: &Params, max_items: usize) -> Result<Self, ApiError> {
        let largest = i64::try_from(max_items).unwrap_or(i64::MAX);
        let limit =
            params.optional_number("limit", 1..=largest)?.and_then(|limit| usize::try_from(limit).ok());
        let after = params
            .optional("cursor")?
            .map(|cursor| {
                SortKey::from_cursor(cursor)
                    .ok_or_else(|| ApiError::invalid("cursor is not a next_cursor of this list"))
            })
            .transpose()?;
        Ok(Self { after, limit, max_items })
    }

    /// Returns the number of items to fetch: one more than the page, which shows whether another page follows.
    pub(crate) fn fetch_limit(&self) -> usize {
        self.size() + 1
    }

    /// Truncates the fetched items to the page. Returns the cursor of the next page if the request has a limit and
    /// another page follows.
    pub(crate) fn truncate<T>(&self, items: &mut Vec<T>, sort_key: impl Fn(&T) -> SortKey) -> Option<String> {
        let has_more = items.len() > self.size();
        items.truncate(self.size());
        self.limit?;
        items.last().filter(|_| has_more).map(|last| sort_key(last).to_cursor())
    }

    fn size(&self) -> usize {
        self.limit.unwrap_or(self.max_items)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use vidlog_contract::Code;

    use super::*;

    fn sort_keys() -> impl Strategy<Value = SortKey> {
        let number = || prop_oneof![0..3_i64, 0..=i64::MAX];
        (number(), number()).prop_map(|(score, id)| SortKey { score, id })
    }

    proptest! {
        #[test]
        fn every_cursor_round_trips(sort_key in sort_keys()) {
            let cursor = sort_key.to_cursor();
            let page = page(&format!("cursor={cursor}")).unwrap();
            prop_assert_eq!(page.after, Some(sort_key));
        }

        #[test]
        fn only_cursors_are_accepted(text in "[0-9a-fA-F]{32}|[0-7][0-9a-f]{15}[0-7][0-9a-f]{15}|[0-9a-f+-]{30,33}|\\PC{0,34}") {
            if let Some(sort_key) = SortKey::from_cursor(&text) {
                prop_assert_eq!(sort_key.to_cursor(), text.to_lowercase());
                prop_assert!(sort_key.score >= 0 && sort_key.id >= 0);
            }
        }

        /// Follows the cursors of a list as a client does.
        #[test]
        fn pages_return_every_item_once(items in vec(sort_keys(), 0..12), limit in 1..5_usize) {
            let mut items = items;
            items.sort_by_key(|item| item.order());
            items.dedup();
            let (mut read, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = page(&format!("limit={limit}&cursor={cursor}")).unwrap();
                let is_after = |item: &SortKey| page.after.is_none_or(|after| item.is_after(after));
                let mut found: Vec<_> = items.iter().copied().filter(is_after).take(page.fetch_limit()).collect();
                let next = page.truncate(&mut found, |item| *item);
                prop_assert!(found.len() <= limit && (next.is_none() || found.len() == limit));
                read.extend(found);
                match next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
            prop_assert_eq!(read, items);
        }
    }

    fn page(query: &str) -> Result<Page, ApiError> {
        Page::from_params(&Params::from_query(query), 500)
    }

    #[test]
    fn cursor_round_trips() {
        for sort_key in [SortKey { score: 1_700_000_000_000, id: 7 }, SortKey { score: 0, id: i64::MAX }] {
            assert_eq!(SortKey::from_cursor(&sort_key.to_cursor()), Some(sort_key));
        }
    }

    #[test]
    fn other_text_is_no_cursor() {
        for cursor in ["x", "0", &"f".repeat(32), &"+".repeat(32), &"0".repeat(31), &"é".repeat(16)] {
            let error = page(&format!("cursor={cursor}")).unwrap_err();
            assert_eq!(error.code, Code::InvalidParameter, "{cursor}");
        }
    }

    #[test]
    fn equal_scores_sort_as_in_redis() {
        let (nine, ten) = (SortKey { score: 1, id: 9 }, SortKey { score: 1, id: 10 });
        assert!(ten.is_after(nine), "by digits, from the last to the first");
        assert!(!nine.is_after(ten) && !nine.is_after(nine));
        assert!(nine.is_after(SortKey { score: 2, id: 1 }));
    }

    #[test]
    fn next_cursor_needs_a_limit_and_more_items() {
        let sort_key = |id: &i64| SortKey { score: 1, id: *id };
        let mut items = vec![3, 2, 1];
        let next = page("limit=2").unwrap().truncate(&mut items, sort_key);
        assert_eq!((items, next), (vec![3, 2], Some(SortKey { score: 1, id: 2 }.to_cursor())));
        assert_eq!(page("limit=3").unwrap().truncate(&mut vec![3, 2, 1], sort_key), None);
        assert_eq!(page("").unwrap().truncate(&mut vec![0; 501], sort_key), None);
    }

    #[test]
    fn limit_is_bounded_by_the_list() {
        assert_eq!(page("limit=500").unwrap().fetch_limit(), 501);
        assert_eq!(page("").unwrap().fetch_limit(), 501);
        for limit in ["0", "501", "-1", "x"] {
            assert_eq!(page(&format!("limit={limit}")).unwrap_err().code, Code::InvalidParameter);
        }
    }
}
