//! One request, in parts that can be left out one by one.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a request is about: a row of the table in `router/API.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    Filters,
    Logic,
    Select,
    Order,
    Pages,
    Media,
    Embeds,
    Spreads,
    Aggregates,
    Insert,
    Upsert,
    Update,
    Delete,
    CallByGet,
    CallByPost,
    Schemas,
    Errors,
    ByHand,
}

impl Section {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Filters => "Filters",
            Self::Logic => "Logic trees",
            Self::Select => "Select",
            Self::Order => "Order",
            Self::Pages => "Pages and counts",
            Self::Media => "Media types",
            Self::Embeds => "Embedding",
            Self::Spreads => "Spreads",
            Self::Aggregates => "Aggregates",
            Self::Insert => "Insert",
            Self::Upsert => "Upsert, PUT",
            Self::Update => "Update",
            Self::Delete => "Delete",
            Self::CallByGet => "Functions by GET",
            Self::CallByPost => "Functions by POST",
            Self::Schemas => "Schemas, OPTIONS, HEAD",
            Self::Errors => "Malformed requests",
            Self::ByHand => "Written by hand",
        }
    }
}

/// A request that both are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) section: Section,
    pub(crate) method: &'static str,
    /// Path, not encoded.
    pub(crate) path: String,
    /// Parameters, not encoded.
    pub(crate) params: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
    /// Rows come in a fixed order at every level.
    pub(crate) ordered: bool,
    /// It changes rows for good.
    pub(crate) commits: bool,
}

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'*')
    .remove(b'/');

impl Case {
    pub(crate) fn get(path: &str) -> Self {
        Self {
            section: Section::Select,
            method: "GET",
            path: path.to_owned(),
            params: Vec::new(),
            headers: Vec::new(),
            body: None,
            ordered: true,
            commits: false,
        }
    }

    /// Path and query string, encoded.
    pub(crate) fn target(&self) -> String {
        let mut text = utf8_percent_encode(&self.path, ENCODED).to_string();
        for (index, (key, value)) in self.params.iter().enumerate() {
            text.push(if index == 0 { '?' } else { '&' });
            text.extend(utf8_percent_encode(key, ENCODED));
            text.push('=');
            text.extend(utf8_percent_encode(value, ENCODED));
        }
        text
    }

    pub(crate) fn writes(&self) -> bool {
        let reads = matches!(self.method, "GET" | "HEAD" | "OPTIONS");
        !reads
    }

    pub(crate) fn header(&mut self, name: &str, value: impl Into<String>) {
        self.headers.push((name.to_owned(), value.into()));
    }

    pub(crate) fn has_header(&self, name: &str, part: &str) -> bool {
        let mut headers = self.headers.iter();
        headers.any(|(known, value)| known == name && value.contains(part))
    }

    pub(crate) fn param(&self, key: &str) -> Option<&str> {
        let found = self.params.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }

    /// The same request, rolled back in the end.
    pub(crate) fn tried(&self) -> Self {
        let mut tried = self.clone();
        if self.commits {
            tried.commits = false;
            match tried.headers.iter_mut().find(|(name, _)| name == "Prefer") {
                Some((_, value)) => value.push_str(", tx=rollback"),
                None => tried.header("Prefer", "tx=rollback"),
            }
        }
        tried
    }

    /// Simpler requests that may still show the same.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let mut found = Vec::new();
        for index in 0..self.params.len() {
            if self.orders_a_page(index) {
                continue;
            }
            let mut simpler = self.clone();
            simpler.ordered &= !self.params[index].0.ends_with("order");
            simpler.params.remove(index);
            found.push(simpler);
        }
        for index in 0..self.headers.len() {
            // Nothing that is tried is to stay.
            if self.headers[index].1.contains("tx=rollback") && self.headers[index].0 == "Prefer" {
                let parts: Vec<&str> = self.headers[index].1.split(", ").collect();
                for left_out in parts.iter().filter(|part| **part != "tx=rollback") {
                    let kept = parts.iter().filter(|part| *part != left_out);
                    let mut simpler = self.clone();
                    simpler.headers[index].1 = kept.copied().collect::<Vec<_>>().join(", ");
                    found.push(simpler);
                }
                continue;
            }
            let mut simpler = self.clone();
            simpler.headers.remove(index);
            found.push(simpler);
        }
        for (index, (_, value)) in self.params.iter().enumerate() {
            for shorter in fewer_items(value) {
                let mut simpler = self.clone();
                simpler.params[index].1 = shorter;
                found.push(simpler);
            }
        }
        found
    }

    /// Whether an order keeps a page of the same level from being arbitrary.
    fn orders_a_page(&self, index: usize) -> bool {
        let Some(prefix) = self.params[index].0.strip_suffix("order") else {
            return false;
        };
        let paged = |key: &str| {
            let rest = key.strip_prefix(prefix);
            matches!(rest, Some("limit" | "offset"))
        };
        self.params.iter().any(|(key, _)| paged(key)) || self.has_header("Range", "-")
    }
}

/// A list without one of its items, at every depth of parentheses.
fn fewer_items(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    let bytes = value.as_bytes();
    let mut starts = vec![0_usize];
    let mut quoted = false;
    let mut items: Vec<(usize, usize)> = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'(' => starts.push(at + 1),
            b',' | b')' => {
                let start = starts.pop().unwrap_or(0);
                items.push((start, at));
                if *byte == b',' {
                    starts.push(at + 1);
                }
            }
            _ => {}
        }
    }
    items.push((starts.pop().unwrap_or(0), bytes.len()));
    for (start, end) in items {
        let before = &value[..start];
        let after = &value[end..];
        let shorter = match (before.strip_suffix(','), after.strip_prefix(',')) {
            (Some(before), _) => format!("{before}{after}"),
            (None, Some(after)) => format!("{before}{after}"),
            (None, None) => continue,
        };
        found.push(shorter);
    }
    found
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        for (index, (key, value)) in self.params.iter().enumerate() {
            let joint = if index == 0 { '?' } else { '&' };
            write!(f, "{joint}{key}={value}")?;
        }
        for (name, value) in &self.headers {
            write!(f, "\n{name}: {value}")?;
        }
        if let Some(body) = &self.body {
            write!(f, "\n\n{body}")?;
        }
        Ok(())
    }
}
