//! What a dump's text names, told from its tokens.

use squawk_lexer::{TokenKind, tokenize};

use crate::lint::canonical;

/// A name of one part as Postgres understands it.
pub(super) fn plain(name: &str) -> String {
    let name = canonical(name);
    name.strip_prefix("public.")
        .map(str::to_owned)
        .unwrap_or(name)
}

/// Without psql's own lines, such as \restrict, which are no SQL; in a literal, a
/// function's body say, a line that begins so is text.
pub(super) fn without_psql(dump: &str) -> String {
    let mut kept = String::with_capacity(dump.len());
    let mut at = 0;
    let mut skips = false;
    for token in tokenize(dump) {
        let end = at + token.len as usize;
        let own = dump.get(at..end).unwrap_or_default();
        at = end;
        skips |= own.starts_with('\\') && (kept.is_empty() || kept.ends_with('\n'));
        match own.find('\n') {
            Some(rest) if skips => {
                kept.push_str(&own[rest..]);
                skips = false;
            }
            None if skips => {}
            _ => kept.push_str(own),
        }
    }
    kept
}

/// Names of two parts outside of literals, as `schema.name`.
pub(super) fn qualified(sql: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut first: Option<(&str, bool)> = None;
    let mut at = 0;
    for token in tokenize(sql) {
        let own = sql.get(at..at + token.len as usize).unwrap_or_default();
        at += token.len as usize;
        first = match (token.kind, first) {
            (
                TokenKind::Whitespace | TokenKind::LineComment | TokenKind::BlockComment { .. },
                first,
            ) => first,
            (TokenKind::Ident | TokenKind::QuotedIdent { .. }, Some((schema, true))) => {
                names.push(canonical(&format!("{schema}.{own}")));
                // Of a third part the first two are told already.
                None
            }
            (TokenKind::Ident | TokenKind::QuotedIdent { .. }, _) => Some((own, false)),
            (TokenKind::Dot, Some((schema, false))) => Some((schema, true)),
            _ => None,
        };
    }
    names
}

/// The insides of a statement's literals.
pub(super) fn bodies(sql: &str) -> Vec<&str> {
    let mut bodies = Vec::new();
    let mut at = 0;
    for token in tokenize(sql) {
        let own = sql.get(at..at + token.len as usize).unwrap_or_default();
        at += token.len as usize;
        if let TokenKind::Literal { .. } = token.kind {
            let tag = own.strip_prefix('$').and_then(|rest| rest.find('$'));
            let edge = tag.map_or(1, |tag| tag + 2);
            bodies.extend(own.get(edge..own.len().saturating_sub(edge)));
        }
    }
    bodies
}
