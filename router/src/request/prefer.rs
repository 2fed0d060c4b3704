//! The Prefer header.

use std::time::Duration;

use http::HeaderMap;

/// What the client prefers. Of each kind the first value wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `return=`
    pub returning: Option<Returning>,
    /// `count=`
    pub count: Option<Count>,
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `missing=`
    pub missing: Option<Missing>,
    /// `tx=`
    pub transaction: Option<Transaction>,
    /// `handling=`
    pub handling: Option<Handling>,
    /// `timezone=`
    pub timezone: Option<String>,
    /// `max-affected=`
    pub max_affected: Option<i64>,
    /// `visibility=self`: answer a write before every router sees it.
    pub visibility_self: bool,
    /// `read=primary`: not from a replica.
    pub read_primary: bool,
    /// `max-staleness=`: what others have written in the last seconds may be missed.
    pub staleness_max: Option<Duration>,
    /// What is not known; refused under `handling=strict`.
    pub unknown: Vec<String>,
}

macro_rules! preference {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// `kind=value`, as it is echoed.
            pub fn token(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn of(token: &str) -> Option<Self> {
                match token { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

preference!(
    /// What a write returns.
    Returning {
        /// Nothing.
        Minimal = "return=minimal",
        /// Where the new row is.
        HeadersOnly = "return=headers-only",
        /// The rows.
        Representation = "return=representation",
    }
);

preference!(
    /// How all rows are counted.
    Count {
        /// Exactly.
        Exact = "count=exact",
        /// As the planner guesses. Here exactly too: its statistics cover
        /// all tenants of a shard and would tell one about the others.
        Planned = "count=planned",
        /// Exactly up to a bound. Here exactly, for the same reason.
        Estimated = "count=estimated",
    }
);

preference!(
    /// What happens to rows that are there already.
    Resolution {
        /// They are updated.
        Merge = "resolution=merge-duplicates",
        /// They stay.
        Ignore = "resolution=ignore-duplicates",
    }
);

preference!(
    /// What keys that are missing in a row become.
    Missing {
        /// The column's default.
        Default = "missing=default",
        /// NULL.
        Null = "missing=null",
    }
);

preference!(
    /// How the transaction ends.
    Transaction {
        /// Committed.
        Commit = "tx=commit",
        /// Rolled back.
        Rollback = "tx=rollback",
    }
);

preference!(
    /// What happens to preferences that are not known.
    Handling {
        /// Refused.
        Strict = "handling=strict",
        /// Ignored.
        Lenient = "handling=lenient",
    }
);

impl Preferences {
    /// Reads all Prefer headers.
    pub(super) fn parse(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let values = headers.get_all("prefer").iter();
        let values = values.filter_map(|value| value.to_str().ok());
        for token in values.flat_map(|value| value.split(',')).map(str::trim) {
            found.take(token);
        }
        found
    }

    /// Unknown preferences are to be refused.
    pub fn strict(&self) -> bool {
        self.handling == Some(Handling::Strict)
    }

    /// The bound on affected rows, where it is to be kept.
    pub fn bound(&self) -> Option<i64> {
        self.max_affected.filter(|_| self.strict())
    }

    fn take(&mut self, token: &str) {
        if token.is_empty() {
            return;
        }
        if let Some(value) = Returning::of(token) {
            self.returning.get_or_insert(value);
        } else if let Some(value) = Count::of(token) {
            self.count.get_or_insert(value);
        } else if let Some(value) = Resolution::of(token) {
            self.resolution.get_or_insert(value);
        } else if let Some(value) = Missing::of(token) {
            self.missing.get_or_insert(value);
        } else if let Some(value) = Transaction::of(token) {
            self.transaction.get_or_insert(value);
        } else if let Some(value) = Handling::of(token) {
            self.handling.get_or_insert(value);
        } else if token == "visibility=self" {
            self.visibility_self = true;
        } else if let Some(zone) = token.strip_prefix("timezone=") {
            self.timezone.get_or_insert_with(|| zone.to_owned());
        } else if let Some(Ok(bound)) = token.strip_prefix("max-affected=").map(str::parse) {
            self.max_affected.get_or_insert(bound);
        } else if token == "read=primary" {
            self.read_primary = true;
        } else if let Some(Ok(seconds)) =
            token.strip_prefix("max-staleness=").map(str::parse::<u32>)
        {
            let staleness = Duration::from_secs(seconds.into());
            self.staleness_max.get_or_insert(staleness);
        } else {
            self.unknown.push(token.to_owned());
        }
    }
}
