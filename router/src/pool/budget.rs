//! How many connections to a node there are. One is counted before it is made, and
//! until it is closed, so that those who make some at the same time don't each take
//! the last place.

use std::sync::{Arc, Mutex, MutexGuard};

/// A node's places for connections.
pub(super) struct Budget {
    /// Of one role at most.
    role_max: usize,
    taken: Mutex<Taken>,
}

struct Taken {
    max: usize,
    total: usize,
    by_role: Vec<(Arc<str>, usize)>,
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    budget: Arc<Budget>,
    role: Arc<str>,
}

impl Budget {
    /// `max` places, `role_max` of them for one role.
    pub(super) fn new(max: usize, role_max: usize) -> Arc<Self> {
        Arc::new(Self {
            role_max,
            taken: Mutex::new(Taken {
                max,
                total: 0,
                by_role: Vec::new(),
            }),
        })
    }

    /// Another number of places; those that are taken stay so.
    pub(super) fn resize(&self, max: usize) {
        self.taken().max = max;
    }

    /// Places that are taken.
    pub(super) fn open(&self) -> usize {
        self.taken().total
    }

    /// Whether there is none for the role.
    pub(super) fn is_spent(&self, role: &str) -> bool {
        self.taken().is_spent(role, self.role_max)
    }

    /// A place for one more of the role.
    pub(super) fn take(self: &Arc<Self>, role: &Arc<str>) -> Option<Place> {
        let mut taken = self.taken();
        if taken.is_spent(role, self.role_max) {
            return None;
        }
        taken.total += 1;
        match taken.by_role.iter_mut().find(|(known, _)| known == role) {
            Some((_, count)) => *count += 1,
            None => taken.by_role.push((role.clone(), 1)),
        }
        Some(Place {
            budget: self.clone(),
            role: role.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Taken {
    fn is_spent(&self, role: &str, role_max: usize) -> bool {
        let of_role = self.by_role.iter().find(|(known, _)| **known == *role);
        self.total >= self.max || of_role.is_some_and(|(_, count)| *count >= role_max)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        taken.total = taken.total.saturating_sub(1);
        let mut by_role = taken.by_role.iter_mut();
        if let Some((_, count)) = by_role.find(|(known, _)| *known == self.role) {
            *count = count.saturating_sub(1);
        }
    }
}
