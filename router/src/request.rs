//! Stage 1: HTTP to [`ApiRequest`]. Pure.
//!
//! Reads PostgREST's dialect: the path, the profile headers, the query string,
//! Prefer, Accept and Range; [`body::parse`] reads the body. Nothing here knows
//! the schema: names are texts, and whether they exist is `plan`'s question.

pub mod accept;
pub mod body;
pub mod bounds;
mod cursor;
pub mod filter;
pub mod logic;
pub mod name;
pub mod order;
pub mod page;
pub mod prefer;
pub mod query;
pub mod select;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::config::Api;
use crate::error::Error;
use crate::freshness::Wanted;
use crate::tag::IfMatch;
use crate::token::{self, Token};
use accept::MediaType;
use page::Page;
use prefer::Preferences;
use query::Query;

/// The parts of an HTTP request that say what is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// Its method.
    pub method: &'a http::Method,
    /// Its path behind the configured prefix, still encoded.
    pub path: &'a str,
    /// Its query string, still encoded, without `?`.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// A request, read and not yet looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiRequest {
    /// What is to be done.
    pub method: Method,
    /// With what.
    pub target: Target,
    /// The exposed schema that names are looked up in.
    pub schema: String,
    /// The client named the schema itself.
    pub schema_named: bool,
    /// The Prefer header.
    pub prefer: Preferences,
    /// Acceptable media types, most wanted first; never empty.
    pub accept: Vec<MediaType>,
    /// The query string.
    pub query: Query,
    /// The page of the request's own relation, out of query string and Range.
    pub page: Page,
    /// The query string sorted and encoded anew.
    pub canonical_query: String,
    /// The write that a read must see; the header Ringfence-Token.
    pub token: Option<Token>,
    /// If-Match, where a relation's rows are written.
    pub if_match: Option<IfMatch>,
}

/// Methods that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Read.
    Get,
    /// Read without the body.
    Head,
    /// Insert, or call.
    Post,
    /// Update.
    Patch,
    /// Upsert one row.
    Put,
    /// Delete.
    Delete,
    /// What is possible here?
    Options,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `/`
    Root,
    /// `/name`
    Relation(String),
    /// `/rpc/name`
    Function(String),
}

impl Method {
    fn parse(method: &http::Method) -> Option<Self> {
        Some(match method.as_str() {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PATCH" => Self::Patch,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => return None,
        })
    }

    /// GET or HEAD.
    pub fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }

    /// Has PATCH, PUT, DELETE or POST's rights to change rows.
    pub fn writes(self) -> bool {
        matches!(self, Self::Post | Self::Patch | Self::Put | Self::Delete)
    }
}

impl ApiRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// In PostgREST's order: path, schema, method, query string, range; then the token.
    pub fn parse(parts: &RequestParts<'_>, config: &Api) -> Result<Self, Error> {
        let target = Target::parse(parts.path)?;
        let (schema, schema_named) = schema(parts, config)?;
        let method = method(parts.method, &target)?;
        let call = matches!(target, Target::Function(_));
        let mut query = Query::parse(parts.query, call && method.reads())?;
        // The whole row is written.
        query.columns = query.columns.filter(|_| method != Method::Put);
        let page = match method {
            Method::Get => query.page().intersect(page::header(parts.headers)?)?,
            _ => query.page().intersect(Page::default())?,
        };
        if method == Method::Put && !page.is_whole() {
            return Err(Error::PutRange);
        }
        Ok(Self {
            method,
            target,
            schema,
            schema_named,
            prefer: Preferences::parse(parts.headers),
            accept: accept::parse(parts.headers),
            query,
            page,
            canonical_query: query::canonical(parts.query),
            token: token(parts.headers)?,
            if_match: match method.writes() && !call {
                true => IfMatch::parse(parts.headers)?,
                false => None,
            },
        })
    }

    /// How fresh the answer to a read must be.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            token: self.token,
            stale_max: self.prefer.staleness_max,
            primary: self.prefer.read_primary,
        }
    }

    /// Transaction-local settings that the request asks for, by name.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        let zone = self.prefer.timezone.as_deref();
        zone.map(|zone| ("timezone", zone)).into_iter().collect()
    }
}

fn token(headers: &HeaderMap) -> Result<Option<Token>, Error> {
    let Some(value) = headers.get(token::HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| Error::Token)?;
    text.parse().map(Some).map_err(|_| Error::Token)
}

impl Target {
    fn parse(path: &str) -> Result<Self, Error> {
        let decode = |segment: &str| {
            let decoded = percent_decode_str(segment).decode_utf8();
            decoded
                .map(|name| name.into_owned())
                .map_err(|_| Error::Path)
        };
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').collect();
        match segments.as_slice() {
            [""] => Ok(Self::Root),
            ["rpc", name] if !name.is_empty() => Ok(Self::Function(decode(name)?)),
            [name] => Ok(Self::Relation(decode(name)?)),
            _ => Err(Error::Path),
        }
    }
}

/// Writes and calls by POST are told by Content-Profile, all else by Accept-Profile.
/// `public` always names the default schema: official clients send it unasked.
fn schema(parts: &RequestParts<'_>, config: &Api) -> Result<(String, bool), Error> {
    let header = match parts.method.as_str() {
        "POST" | "PATCH" | "PUT" | "DELETE" => "content-profile",
        _ => "accept-profile",
    };
    let default = config.schemas.first().cloned().unwrap_or_default();
    let Some(named) = parts.headers.get(header).and_then(|v| v.to_str().ok()) else {
        return Ok((default, false));
    };
    if config.schemas.iter().any(|schema| schema == named) {
        return Ok((named.to_owned(), true));
    }
    if named == "public" {
        return Ok((default, true));
    }
    Err(Error::Schema {
        schema: named.to_owned(),
        exposed: config.schemas.clone(),
    })
}

fn method(method: &http::Method, target: &Target) -> Result<Method, Error> {
    let parsed = Method::parse(method);
    let name = || method.as_str().to_owned();
    match (target, parsed) {
        (Target::Relation(_), Some(parsed)) => Ok(parsed),
        (Target::Function(_), Some(parsed))
            if !matches!(parsed, Method::Patch | Method::Put | Method::Delete) =>
        {
            Ok(parsed)
        }
        (Target::Function(_), _) => Err(Error::MethodOnFunction(name())),
        (Target::Root, Some(parsed)) if parsed.reads() || parsed == Method::Options => Ok(parsed),
        (Target::Root | Target::Relation(_), _) => Err(Error::Method(name())),
    }
}
