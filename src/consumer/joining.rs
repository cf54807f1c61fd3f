//! With which refusals a member can never join its group, and what cures each.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

/// For how long a member that never joined is refused for its assignors before that ends the consumer. While a group changes its assignors
/// member by member, those that are new to it are refused until the last old one has left.
pub(super) const CHANGE: Duration = Duration::from_secs(120);
/// A member asks once a second: what is not heard for so long is over.
const SILENCE: Duration = Duration::from_secs(30);

/// What would let in a member that the broker refuses, for refusals that nothing else mends; `None` for those that may pass, and for what is no such refusal.
///
/// `setting` tells what the client is set to.
pub(super) fn cure<'a>(code: Code, fatal: bool, setting: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let given = |name| setting(name).unwrap_or("its default");
    Some(match code {
        Code::InvalidSessionTimeout => format!(
            "session.timeout.ms is {}: set it between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms",
            given("session.timeout.ms")
        ),
        Code::InvalidGroupId => format!("group.id is {:?}, which the brokers refuse: give it another name", given("group.id")),
        Code::GroupMaxSizeReached => {
            "the group has as many members as it may have: start fewer, or raise the brokers' group.max.size (group.consumer.max.size for \
             group.protocol=consumer)"
                .into()
        }
        Code::InconsistentGroupProtocol => format!(
            "partition.assignment.strategy is {}, which the other members do not know: give all members of the group one in common, and one \
             group.protocol",
            given("partition.assignment.strategy")
        ),
        Code::FencedInstanceId | Code::UnreleasedInstanceId => {
            "another member with this group.instance.id is alive: give each member one of its own".into()
        }
        Code::UnsupportedAssignor => format!(
            "group.remote.assignor is {}: name one of the brokers' group.consumer.assignors, or leave it out",
            given("group.remote.assignor")
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature if fatal => {
            "the brokers do not know group.protocol=consumer: it takes Kafka 4.0, or set group.protocol=classic".into()
        }
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed => {
            "allow this user to read the topic and the group".into()
        }
        _ => return None,
    })
}

/// Since when, and when last, a member was refused for its assignors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strangers(Option<(Instant, Instant)>);

impl Strangers {
    /// It was never refused.
    pub(super) const NONE: Self = Self(None);

    /// It is refused once more: whether that has lasted.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let lasting = self.0.filter(|(_, last)| now.saturating_duration_since(*last) < SILENCE);
        let since = lasting.map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        now.saturating_duration_since(since) >= CHANGE
    }

    /// Whether it was never refused.
    pub(super) const fn is_new(self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_can_never_join_names_the_setting_and_its_value() {
        let setting = |name: &str| (name == "session.timeout.ms").then_some("1000");
        let cure = |code, fatal| cure(code, fatal, setting);
        let text = cure(Code::InvalidSessionTimeout, false).expect("never passes");
        assert!(
            text.starts_with("session.timeout.ms is 1000: ") && text.contains("group.max.session.timeout.ms"),
            "{text}"
        );
        let text = cure(Code::UnsupportedAssignor, true).expect("never passes");
        assert!(text.starts_with("group.remote.assignor is its default"), "{text}");
        assert!(cure(Code::UnsupportedVersion, true).is_some_and(|text| text.contains("group.protocol=classic")));
        for passing in
            [Code::UnsupportedVersion, Code::CoordinatorNotAvailable, Code::UnknownMemberId, Code::PollExceeded]
        {
            assert_eq!(cure(passing, false), None, "{passing}");
        }
    }

    #[test]
    fn other_assignors_are_waited_for_as_long_as_a_change_of_them_may_take() {
        let (mut strangers, began) = (Strangers::NONE, Instant::now());
        assert!(strangers.is_new());
        for at in 0..CHANGE.as_secs() {
            assert!(!strangers.refused(began + Duration::from_secs(at)), "after {at} s");
        }
        assert!(!strangers.is_new());
        assert!(strangers.refused(began + CHANGE));
        // The brokers were away, or the others were: it begins anew.
        let later = began + CHANGE + SILENCE;
        assert!(!strangers.refused(later));
        assert!(!strangers.refused(later + SECOND));
    }
}
