//! How deep a text is nested, before it is parsed: the parser and its tree go
//! as deep as the text does, on a stack that has an end.

use squawk_lexer::{LiteralKind, TokenKind, tokenize};

/// Brackets, CASE, blocks and prefix operators within each other.
const NESTED_MAX: usize = 150;
/// Tokens of one chain, such as `a + b + c` or `… union …`: its tree leans to
/// one side, so it is as deep as it is long.
const CHAIN_MAX: usize = 4_000;

/// Words that begin what a matching END ends.
const OPENING: &[&str] = &["case", "begin", "if", "loop"];
/// What stands before the IF of a block.
const BEFORE_IF: &[&str] = &[";", "begin", "then", "else", "loop"];
/// Words that go on with a chain across commas.
const LINKS: &[&str] = &["union", "except", "intersect", "join"];

/// Chains of a bracket's inside.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Tokens since the last comma.
    since_comma: usize,
    /// Set operations and joins since the statement's begin.
    links: usize,
}

/// Where a file's text is nested deeper than it may be, in bytes from its begin.
pub(crate) fn too_deep(text: &str) -> Option<usize> {
    look(text, false)
}

fn look(text: &str, is_body: bool) -> Option<usize> {
    let mut levels = vec![Level::default()];
    let (mut outer, mut words, mut prefix) = (0, 0_usize, 0);
    let mut before = "";
    let mut at = 0;
    for token in tokenize(text) {
        let start = at;
        at += token.len as usize;
        let own = text.get(start..at).unwrap_or_default();
        if is_trivia(token.kind) {
            continue;
        }
        let word = if token.kind == TokenKind::Ident {
            own
        } else {
            ""
        };
        let is = |list: &[&str]| list.iter().any(|known| word.eq_ignore_ascii_case(known));
        if let Some(level) = levels.last_mut() {
            level.since_comma += 1;
            level.links += usize::from(is(LINKS));
        }
        match token.kind {
            TokenKind::OpenParen | TokenKind::OpenBracket => {
                outer += levels.last().map_or(0, chain);
                levels.push(Level::default());
                prefix = 0;
            }
            TokenKind::CloseParen | TokenKind::CloseBracket if levels.len() > 1 => {
                levels.pop();
                outer -= levels.last().map_or(0, chain);
                prefix = 0;
            }
            TokenKind::Comma => {
                if let Some(level) = levels.last_mut() {
                    level.since_comma = 0;
                }
                prefix = 0;
            }
            TokenKind::Semi => {
                levels = vec![Level::default()];
                (outer, prefix) = (0, 0);
                if !is_body {
                    words = 0;
                }
            }
            TokenKind::Ident if is(&["not"]) => prefix += 1,
            TokenKind::Ident => {
                prefix = 0;
                let after = |list: &[&str]| {
                    let mut list = list.iter();
                    list.any(|known| before.eq_ignore_ascii_case(known))
                };
                // IF EXISTS is no block.
                let is_block = !is(&["if"]) || after(BEFORE_IF);
                if is(&["end"]) {
                    words = words.saturating_sub(1);
                } else if is(OPENING) && is_block && !after(&["end"]) {
                    words += 1;
                }
            }
            TokenKind::Literal { kind } => {
                prefix = 0;
                let introduced = ["as", "do"]
                    .iter()
                    .any(|word| before.eq_ignore_ascii_case(word));
                if let Some(inside) = inside(kind, own, introduced)
                    && let Some(deep) = look(inside, true)
                {
                    return Some(start + (own.len() - inside.len()) / 2 + deep);
                }
            }
            TokenKind::QuotedIdent { .. } | TokenKind::PositionalParam { .. } => prefix = 0,
            // An operator, or a part of one.
            _ => prefix += 1,
        }
        let chained = outer + levels.last().map_or(0, chain);
        if levels.len() + words + prefix > NESTED_MAX || chained > CHAIN_MAX {
            return Some(start);
        }
        before = match token.kind {
            TokenKind::Semi => ";",
            _ => word,
        };
    }
    None
}

fn chain(level: &Level) -> usize {
    level.since_comma + level.links
}

fn is_trivia(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Whitespace | TokenKind::LineComment | TokenKind::BlockComment { .. }
    )
}

/// The text that a literal quotes, where it may be a function's body.
fn inside(kind: LiteralKind, own: &str, is_body: bool) -> Option<&str> {
    match kind {
        LiteralKind::DollarQuotedString { .. } => {
            let tag = own.get(1..)?.find('$')? + 2;
            own.get(tag..own.len().checked_sub(tag)?)
        }
        LiteralKind::Str { .. } if is_body => own.get(1..own.len().checked_sub(1)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::lint::{Known, lint};
    use crate::migration::{Migration, MigrationError};

    #[test]
    fn what_is_nested_too_deep_is_refused_instead_of_overflowing_the_stack() {
        let repeat = |text: &str, n: usize| text.repeat(n);
        for deep in [
            format!("select {}1{};", repeat("(", 50_000), repeat(")", 50_000)),
            format!("select {}1;", repeat("- ", 50_000)),
            format!("select {}true;", repeat("not ", 50_000)),
            format!("select 1{};", repeat(" + 1", 50_000)),
            format!("select 1, 2{};", repeat(" union all select 1, 2", 20_000)),
            format!("select {}1 end;", repeat("case when true then ", 20_000)),
            format!("select a{};", repeat("[b", 20_000)),
            format!("do $x$ begin {} end $x$;", repeat("if true then ", 20_000)),
            format!(
                "create function f() returns int language sql as 'select {}1';",
                repeat("(", 50_000)
            ),
        ] {
            let short: String = deep.chars().take(40).collect();
            let refused = Migration::parse("001_a.sql", &deep);
            assert!(
                matches!(refused, Err(MigrationError::Nested { line: 1, .. })),
                "{short}"
            );
        }
    }

    #[test]
    fn what_is_not_fits_a_threads_stack() {
        let repeat = |text: &str, n: usize| text.repeat(n);
        for wide in [
            format!("select {}1{};", repeat("(", 140), repeat(")", 140)),
            format!("select 1{};", repeat(" + 1", 1_900)),
            format!("select 1, 2{};", repeat(" union all select 1, 2", 1_300)),
            format!(
                "select {}1{};",
                repeat("case when true then ", 140),
                repeat(" end", 140)
            ),
            format!(
                "insert into t values (1, 'a'){};",
                repeat(", (1, '(((')", 50_000)
            ),
            format!(
                "do $x$ begin {} end $x$;",
                repeat("if true then null; end if; ", 5_000)
            ),
            repeat("select (1);\n", 5_000),
        ] {
            let short: String = wide.chars().take(40).collect();
            let file = Migration::parse("001_a.sql", &wide);
            assert!(file.is_ok(), "{short}: {file:?}");
            lint(&[file.unwrap()], Known::new());
        }
    }
}
