//! The Accept header.

use http::HeaderMap;
use http::header::ACCEPT;

/// A media type that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// `*/*`
    Any,
    /// `application/json`: an array of rows.
    Json,
    /// `application/vnd.pgrst.array+json;nulls=stripped`.
    StrippedArray,
    /// `application/vnd.pgrst.object+json`: exactly one row.
    Object {
        /// `;nulls=stripped`.
        stripped: bool,
    },
    /// `text/csv`
    Csv,
    /// `application/geo+json`
    GeoJson,
    /// `application/openapi+json`
    OpenApi,
    /// `application/vnd.pgrst.plan`
    Plan(Explain),
    /// Anything else, as written.
    Other(String),
}

/// What a plan is to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Explain {
    /// JSON rather than text.
    pub json: bool,
    /// The media type whose statement is explained, as written.
    pub of: Option<String>,
    /// Known options, in the order they are echoed.
    pub options: Vec<ExplainOption>,
}

/// An option of EXPLAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExplainOption {
    /// `analyze`
    Analyze,
    /// `verbose`
    Verbose,
    /// `settings`
    Settings,
    /// `buffers`
    Buffers,
    /// `wal`
    Wal,
}

impl ExplainOption {
    const ALL: [Self; 5] = [
        Self::Analyze,
        Self::Verbose,
        Self::Settings,
        Self::Buffers,
        Self::Wal,
    ];

    /// As the client writes it, and SQL too.
    pub fn word(self) -> &'static str {
        match self {
            Self::Analyze => "analyze",
            Self::Verbose => "verbose",
            Self::Settings => "settings",
            Self::Buffers => "buffers",
            Self::Wal => "wal",
        }
    }
}

impl MediaType {
    /// Content-Type of an answer of this type.
    pub fn content_type(&self) -> String {
        match self {
            Self::Any | Self::Json => "application/json; charset=utf-8".into(),
            Self::StrippedArray => {
                "application/vnd.pgrst.array+json;nulls=stripped; charset=utf-8".into()
            }
            Self::Object { stripped: false } => {
                "application/vnd.pgrst.object+json; charset=utf-8".into()
            }
            Self::Object { stripped: true } => {
                "application/vnd.pgrst.object+json;nulls=stripped; charset=utf-8".into()
            }
            Self::Csv => "text/csv; charset=utf-8".into(),
            Self::GeoJson => "application/geo+json; charset=utf-8".into(),
            Self::OpenApi => "application/openapi+json; charset=utf-8".into(),
            Self::Plan(explain) => explain.content_type(),
            Self::Other(text) => match text.to_ascii_lowercase().as_str() {
                kind @ ("text/plain" | "text/xml") => format!("{kind}; charset=utf-8"),
                _ => text.split(';').next().unwrap_or_default().trim().into(),
            },
        }
    }

    /// As a client writes it.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<(&str, &str)> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .collect();
        let stripped = parameters.contains(&("nulls", "stripped"));
        match name.as_str() {
            "*/*" => Self::Any,
            "application/json" => Self::Json,
            "application/vnd.pgrst.array" | "application/vnd.pgrst.array+json" => {
                if stripped {
                    Self::StrippedArray
                } else {
                    Self::Json
                }
            }
            "application/vnd.pgrst.object" | "application/vnd.pgrst.object+json" => {
                Self::Object { stripped }
            }
            "text/csv" => Self::Csv,
            "application/geo+json" => Self::GeoJson,
            "application/openapi+json" => Self::OpenApi,
            "application/vnd.pgrst.plan" | "application/vnd.pgrst.plan+text" => {
                Self::Plan(Explain::parse(false, &parameters))
            }
            "application/vnd.pgrst.plan+json" => Self::Plan(Explain::parse(true, &parameters)),
            _ => Self::Other(text.trim().to_owned()),
        }
    }
}

impl Explain {
    /// The statement is run, too.
    pub fn runs(&self) -> bool {
        self.options.contains(&ExplainOption::Analyze)
    }

    fn parse(json: bool, parameters: &[(&str, &str)]) -> Self {
        let value = |wanted: &str| {
            let found = parameters.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, value)| *value)
        };
        let words: Vec<&str> = value("options").unwrap_or_default().split('|').collect();
        let known = ExplainOption::ALL.into_iter();
        Self {
            json,
            of: value("for").map(str::to_owned),
            options: known
                .filter(|option| words.contains(&option.word()))
                .collect(),
        }
    }

    /// Content-Type of the explanation.
    pub fn content_type(&self) -> String {
        let suffix = if self.json { "json" } else { "text" };
        let of = self.of.as_deref().unwrap_or("application/json");
        let mut text = format!("application/vnd.pgrst.plan+{suffix}; for=\"{of}\"");
        if !self.options.is_empty() {
            let words: Vec<&str> = self.options.iter().map(|option| option.word()).collect();
            text.push_str("; options=");
            text.push_str(&words.join("|"));
        }
        text.push_str("; charset=utf-8");
        text
    }
}

/// What is accepted, most wanted first. Never empty.
pub(super) fn parse(headers: &HeaderMap) -> Vec<MediaType> {
    let values = headers.get_all(ACCEPT).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let mut found: Vec<(u32, MediaType)> = Vec::new();
    for text in texts.flat_map(split).filter(|text| !text.trim().is_empty()) {
        found.push((quality(text), MediaType::parse(text)));
    }
    if found.is_empty() {
        return vec![MediaType::Any];
    }
    // Stable, so equally wanted ones keep their order.
    found.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    found.into_iter().map(|(_, media)| media).collect()
}

/// Splits at commas outside quotes.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The `q` parameter in thousandths.
fn quality(text: &str) -> u32 {
    let q = text
        .split(';')
        .find_map(|part| part.trim().strip_prefix("q="));
    let q: f32 = q.and_then(|q| q.trim().parse().ok()).unwrap_or(1.0);
    // Clamped to what fits.
    (q.clamp(0.0, 1.0) * 1000.0) as u32
}
