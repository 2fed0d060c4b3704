//! The newest timeline that was seen of each server of a shard. A primary below it was
//! replaced: what it takes would be lost.

use serde::{Deserialize, Serialize};

/// By system identifiers. Only of servers of which one was promoted: below the first
/// timeline there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timelines(Vec<(String, i32)>);

impl Timelines {
    /// Of nodes as they were last seen, also of such as are down: system identifier and
    /// timeline of each.
    pub fn of<'a>(seen: impl IntoIterator<Item = (Option<&'a str>, Option<i32>)>) -> Self {
        let mut newest: Vec<(String, i32)> = Vec::new();
        for (system, timeline) in seen {
            let (Some(system), Some(timeline)) = (system, timeline) else {
                continue;
            };
            match newest.iter_mut().find(|(known, _)| known == system) {
                Some((_, known)) => *known = timeline.max(*known),
                None => newest.push((system.to_owned(), timeline)),
            }
        }
        newest.retain(|(_, timeline)| *timeline > 1);
        Self(newest)
    }

    /// None of its servers was promoted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest one of a server; the first where nothing else is known.
    pub fn newest(&self, system: &str) -> i32 {
        let mut newest = self.0.iter();
        let known = newest.find(|(known, _)| known == system);
        known.map_or(1, |(_, timeline)| *timeline)
    }
}
