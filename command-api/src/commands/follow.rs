//! Following a user, and taking that back.

use vidlog_contract::Action;
use vidlog_events::{Event, FollowEvent, UserFollowed, UserId, UserUnfollowed};
use vidlog_read_models::Fresh;

use super::{Rejection, known};

/// A user's wish about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Who.
    pub follower_id: UserId,
    /// Whom.
    pub followee_id: UserId,
    /// To follow, or to follow no longer.
    pub action: Action,
}

impl Follow {
    /// What can be said against it before any fact is known.
    pub fn check(&self) -> Result<(), Rejection> {
        if self.follower_id == self.followee_id {
            return Err(Rejection::Invalid("nobody can follow themselves"));
        }
        Ok(())
    }
}

/// Decides it. One that is so already is an event nevertheless.
pub fn decide(follow: Follow, followee: Fresh<Option<()>>) -> Result<Event, Rejection> {
    follow.check()?;
    known(followee, "user")?;
    let Follow { follower_id, followee_id, action } = follow;
    Ok(Event::Follow(match action {
        Action::Do => FollowEvent::UserFollowed(UserFollowed { follower_id, followee_id }),
        Action::Undo => FollowEvent::UserUnfollowed(UserUnfollowed { follower_id, followee_id }),
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::given::{fresh, stale, user},
        *,
    };

    fn follow(follower: i64, followee: i64, action: Action) -> Follow {
        Follow { follower_id: user(follower), followee_id: user(followee), action }
    }

    #[test]
    fn given_a_user_when_followed_then_it_is_followed() {
        let followed = UserFollowed { follower_id: user(1), followee_id: user(2) };
        assert_eq!(
            decide(follow(1, 2, Action::Do), fresh(Some(()))),
            Ok(Event::Follow(FollowEvent::UserFollowed(followed)))
        );
    }

    #[test]
    fn given_a_user_when_unfollowed_then_it_is_unfollowed() {
        let unfollowed = UserUnfollowed { follower_id: user(1), followee_id: user(2) };
        assert_eq!(
            decide(follow(1, 2, Action::Undo), stale(Some(()))),
            Ok(Event::Follow(FollowEvent::UserUnfollowed(unfollowed)))
        );
    }

    #[test]
    fn given_a_user_when_it_follows_itself_then_it_is_rejected() {
        for action in [Action::Do, Action::Undo] {
            assert!(matches!(decide(follow(1, 1, action), fresh(Some(()))), Err(Rejection::Invalid(_))));
        }
    }

    #[test]
    fn given_no_user_when_followed_then_it_is_rejected() {
        let wish = follow(1, 2, Action::Do);
        assert_eq!(decide(wish, fresh(None)), Err(Rejection::NotFound("user")));
        assert_eq!(decide(wish, stale(None)), Err(Rejection::Uncertain));
    }
}
