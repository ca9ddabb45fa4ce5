//! Pages of lists.
//!
//! A cursor is the place of the last item in the list's order, not a number of items to skip: what is put in front
//! meanwhile moves nothing, and what is taken out leaves no gap.

use std::cmp::Reverse;

use vidlog_contract::{ApiError, Params};

/// The place of an item in its list: lists are in falling order of score, and of equal scores in falling order of the
/// id's digits, which is how Redis orders them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) score: i64,
    pub(crate) id: i64,
}

impl Place {
    /// Whether this place comes after another in the list.
    pub(crate) fn is_after(self, other: Self) -> bool {
        self.order() > other.order()
    }

    /// What to sort by.
    pub(crate) fn order(self) -> (Reverse<i64>, Reverse<String>) {
        (Reverse(self.score), Reverse(self.id.to_string()))
    }

    fn to_cursor(self) -> String {
        format!("{:016x}{:016x}", self.score, self.id)
    }

    fn of_cursor(cursor: &str) -> Option<Self> {
        if cursor.len() != 32 || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let (score, id) = cursor.split_at_checked(16)?;
        let number = |text| i64::from_str_radix(text, 16).ok();
        Some(Self { score: number(score)?, id: number(id)? })
    }
}

/// The part of a list that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Only what comes after this.
    pub(crate) after: Option<Place>,
    limit: Option<usize>,
    bound: usize,
}

impl Page {
    /// The page that the parameters `limit` and `cursor` ask for, of a list that answers at most `bound` items.
    pub(crate) fn of(params: &Params, bound: usize) -> Result<Self, ApiError> {
        let largest = i64::try_from(bound).unwrap_or(i64::MAX);
        let limit =
            params.optional_number("limit", 1..=largest)?.and_then(|limit| usize::try_from(limit).ok());
        let after = params
            .optional("cursor")?
            .map(|cursor| {
                Place::of_cursor(cursor).ok_or_else(|| ApiError::invalid("cursor is not one of ours"))
            })
            .transpose()?;
        Ok(Self { after, limit, bound })
    }

    /// How many items to fetch: one more than to answer, to know whether there are more.
    pub(crate) fn fetch(&self) -> usize {
        self.size() + 1
    }

    /// Cuts what was fetched down to what is answered, and makes the cursor of the next page: if this one was asked
    /// for with a limit, and there are more.
    pub(crate) fn cut<T>(&self, items: &mut Vec<T>, place: impl Fn(&T) -> Place) -> Option<String> {
        let has_more = items.len() > self.size();
        items.truncate(self.size());
        self.limit?;
        items.last().filter(|_| has_more).map(|last| place(last).to_cursor())
    }

    fn size(&self) -> usize {
        self.limit.unwrap_or(self.bound)
    }
}

#[cfg(test)]
mod tests {
    use vidlog_contract::Code;

    use super::*;

    fn page(query: &str) -> Result<Page, ApiError> {
        Page::of(&Params::parse(query.as_bytes(), b""), 500)
    }

    #[test]
    fn a_cursor_names_its_place() {
        for place in [Place { score: 1_700_000_000_000, id: 7 }, Place { score: 0, id: i64::MAX }] {
            assert_eq!(Place::of_cursor(&place.to_cursor()), Some(place));
        }
    }

    #[test]
    fn anything_else_is_no_cursor() {
        for cursor in ["x", "0", &"f".repeat(32), &"+".repeat(32), &"0".repeat(31), &"é".repeat(16)] {
            let error = page(&format!("cursor={cursor}")).unwrap_err();
            assert_eq!(error.code, Code::InvalidParameter, "{cursor}");
        }
    }

    #[test]
    fn equal_scores_are_ordered_as_redis_does() {
        let (nine, ten) = (Place { score: 1, id: 9 }, Place { score: 1, id: 10 });
        assert!(ten.is_after(nine), "by digits, from the last to the first");
        assert!(!nine.is_after(ten) && !nine.is_after(nine));
        assert!(nine.is_after(Place { score: 2, id: 1 }));
    }

    #[test]
    fn there_is_a_next_page_only_if_one_asked_for_pages_and_there_is_more() {
        let place = |id: &i64| Place { score: 1, id: *id };
        let mut items = vec![3, 2, 1];
        let next = page("limit=2").unwrap().cut(&mut items, place);
        assert_eq!((items, next), (vec![3, 2], Some(Place { score: 1, id: 2 }.to_cursor())));
        assert_eq!(page("limit=3").unwrap().cut(&mut vec![3, 2, 1], place), None);
        assert_eq!(page("").unwrap().cut(&mut vec![0; 501], place), None);
    }

    #[test]
    fn a_limit_is_within_the_list_s_bound() {
        assert_eq!(page("limit=500").unwrap().fetch(), 501);
        assert_eq!(page("").unwrap().fetch(), 501);
        for limit in ["0", "501", "-1", "x"] {
            assert_eq!(page(&format!("limit={limit}")).unwrap_err().code, Code::InvalidParameter);
        }
    }
}
