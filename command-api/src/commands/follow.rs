//! Follows and unfollows users.

use vidlog_contract::Action;
use vidlog_events::{Event, FollowEvent, UserFollowed, UserId, UserUnfollowed};
use vidlog_read_models::Fresh;

use super::{Rejection, require_existing};

/// Command: follow or unfollow a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The caller.
    pub follower_id: UserId,
    /// The user to follow or unfollow.
    pub followee_id: UserId,
    /// Follow or unfollow.
    pub action: Action,
}

impl Follow {
    /// Checks the command without facts.
    pub fn validate(&self) -> Result<(), Rejection> {
        if self.follower_id == self.followee_id {
            return Err(Rejection::Invalid("users cannot follow themselves"));
        }
        Ok(())
    }
}

/// Decides on a follow or unfollow. Returns an event even if the facts say that it changes nothing.
pub fn decide(follow: Follow, followee: Fresh<Option<()>>) -> Result<Event, Rejection> {
    follow.validate()?;
    require_existing(followee, "user")?;
    let Follow { follower_id, followee_id, action } = follow;
    Ok(Event::Follow(match action {
        Action::Do => FollowEvent::UserFollowed(UserFollowed { follower_id, followee_id }),
        Action::Undo => FollowEvent::UserUnfollowed(UserUnfollowed { follower_id, followee_id }),
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{fresh, stale, user},
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
        let command = follow(1, 2, Action::Do);
        assert_eq!(decide(command, fresh(None)), Err(Rejection::NotFound("user")));
        assert_eq!(decide(command, stale(None)), Err(Rejection::Uncertain));
    }
}
