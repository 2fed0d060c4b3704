//! Values saved from earlier answers, by tenant: what `{{pick …}}` draws
//! from. One per thread, so nothing is shared and nothing waits.

use serde_json::Value;

/// So many values a list and tenant: enough to spread over rows, and bounded.
const KEPT: usize = 64;

/// All saved values of a thread.
#[derive(Debug)]
pub struct Lists {
    lists: usize,
    /// Each value is the JSON it came as.
    by_tenant: Vec<Vec<Vec<String>>>,
    /// Where the next value goes once a list is full.
    next: usize,
}

impl Lists {
    /// Empty lists for so many tenants.
    pub fn new(tenants: usize, lists: usize) -> Self {
        // Without lists nothing is kept for any tenant.
        let tenants = if lists == 0 { 0 } else { tenants };
        Lists {
            lists,
            by_tenant: vec![Vec::new(); tenants],
            next: 0,
        }
    }

    fn list(&self, tenant: usize, list: usize) -> &[String] {
        self.by_tenant
            .get(tenant)
            .and_then(|lists| lists.get(list))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether nothing can be drawn.
    pub fn is_empty(&self, tenant: usize, list: usize) -> bool {
        self.list(tenant, list).is_empty()
    }

    /// Whether a list has all it may hold.
    pub fn is_full(&self, tenant: usize, list: usize) -> bool {
        self.list(tenant, list).len() >= KEPT
    }

    /// Keeps a value; in a full list it replaces an older one.
    pub fn keep(&mut self, tenant: usize, list: usize, json: String) {
        let Some(lists) = self.by_tenant.get_mut(tenant) else {
            return;
        };
        if lists.is_empty() {
            lists.resize(self.lists, Vec::new());
        }
        let values = &mut lists[list];
        if values.len() < KEPT {
            values.push(json);
        } else {
            self.next = (self.next + 1) % KEPT;
            values[self.next] = json;
        }
    }

    /// Draws a value, and removes it if `take`.
    pub fn draw(
        &mut self,
        tenant: usize,
        list: usize,
        take: bool,
        random: &mut fastrand::Rng,
    ) -> Option<String> {
        let values = self.by_tenant.get_mut(tenant)?.get_mut(list)?;
        if values.is_empty() {
            return None;
        }
        let place = random.usize(..values.len());
        if take {
            Some(values.swap_remove(place))
        } else {
            Some(values[place].clone())
        }
    }

    /// Keeps the wanted fields of an answer: an array of rows, or one row.
    pub fn keep_fields(&mut self, tenant: usize, saves: &[(usize, String)], body: &[u8]) {
        let Ok(answer) = serde_json::from_slice::<Value>(body) else {
            return;
        };
        let rows = match &answer {
            Value::Array(rows) => rows.as_slice(),
            row => std::slice::from_ref(row),
        };
        for (list, field) in saves {
            for row in rows.iter().take(KEPT) {
                match &row[field.as_str()] {
                    Value::Null | Value::Array(_) | Value::Object(_) => {}
                    scalar => self.keep(tenant, *list, scalar.to_string()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_bounded_number_and_takes_each_once() {
        let mut lists = Lists::new(2, 1);
        let rows: Vec<Value> = (0..200).map(|n| serde_json::json!({ "id": n })).collect();
        lists.keep_fields(
            1,
            &[(0, "id".to_owned())],
            Value::from(rows).to_string().as_bytes(),
        );
        assert!(lists.is_empty(0, 0) && lists.is_full(1, 0));
        lists.keep(1, 0, "\"new\"".to_owned());
        let mut random = fastrand::Rng::with_seed(1);
        let taken: std::collections::HashSet<String> =
            std::iter::from_fn(|| lists.draw(1, 0, true, &mut random)).collect();
        assert_eq!(taken.len(), KEPT);
        assert!(taken.contains("\"new\""));
    }
}
