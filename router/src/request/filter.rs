//! `[not.]op[(modifier)].value`.

use std::fmt;

use super::cursor::Cursor;
use super::name::{self, Field, Quoted};
use crate::error::Error;

/// A condition on a field of the embedded resource at `path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Names of embedded resources; empty for the request's own relation.
    pub path: Vec<String>,
    /// What is tested.
    pub field: Field,
    /// How.
    pub operation: Operation,
}

/// A test, or its negation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// `not.`
    pub negated: bool,
    /// The test.
    pub test: Test,
}

/// What is tested.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// A binary operator.
    Compare {
        /// Which.
        operator: Operator,
        /// `(any)`, `(all)`: the value is an array.
        quantifier: Option<Quantifier>,
        /// The right side, as sent.
        value: String,
    },
    /// `in.(…)`.
    In(Vec<String>),
    /// `is.…`.
    Is(Is),
    /// `isdistinct.…`.
    Distinct(String),
    /// `fts`, `plfts`, `phfts`, `wfts`.
    Search {
        /// How the query text is read.
        syntax: SearchSyntax,
        /// A text search configuration.
        config: Option<String>,
        /// The query.
        query: String,
    },
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As the client writes it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words!(
    /// Binary operators.
    Operator {
        /// `=`
        Eq = "eq",
        /// `<>`
        Neq = "neq",
        /// `>`
        Gt = "gt",
        /// `>=`
        Gte = "gte",
        /// `<`
        Lt = "lt",
        /// `<=`
        Lte = "lte",
        /// `like`, `*` standing for `%`
        Like = "like",
        /// `ilike`, `*` standing for `%`
        Ilike = "ilike",
        /// `~`
        Match = "match",
        /// `~*`
        Imatch = "imatch",
        /// `@>`
        Contains = "cs",
        /// `<@`
        Contained = "cd",
        /// `&&`
        Overlaps = "ov",
        /// `<<`
        StrictlyLeft = "sl",
        /// `>>`
        StrictlyRight = "sr",
        /// `&<`
        NotRight = "nxr",
        /// `&>`
        NotLeft = "nxl",
        /// `-|-`
        Adjacent = "adj",
    }
);

words!(
    /// How an array on the right is compared.
    Quantifier {
        /// With any element.
        Any = "any",
        /// With all elements.
        All = "all",
    }
);

words!(
    /// What `is` tests for.
    Is {
        /// NULL
        Null = "null",
        /// NOT NULL
        NotNull = "not_null",
        /// TRUE
        True = "true",
        /// FALSE
        False = "false",
        /// UNKNOWN
        Unknown = "unknown",
    }
);

words!(
    /// How the text of a search is read.
    SearchSyntax {
        /// `to_tsquery`
        Query = "fts",
        /// `plainto_tsquery`
        Plain = "plfts",
        /// `phraseto_tsquery`
        Phrase = "phfts",
        /// `websearch_to_tsquery`
        Web = "wfts",
    }
);

impl Operator {
    /// Whether `(any)` and `(all)` may follow it.
    fn takes_quantifier(self) -> bool {
        use Operator::*;
        matches!(
            self,
            Eq | Gt | Gte | Lt | Lte | Like | Ilike | Match | Imatch
        )
    }
}

/// Where a value stands decides where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Alone in its parameter: everything is the value.
    Parameter,
    /// Inside a logic tree: up to `,` or `)`.
    Tree,
}

/// Reads an operation up to the end of its value.
pub(super) fn operation(cursor: &mut Cursor<'_>, place: Place) -> Result<Operation, Error> {
    let negated = cursor.eat("not.");
    let mut ahead = cursor.clone();
    let word = ahead.take_while(|c| c.is_ascii_alphabetic());
    let test = match word {
        "in" => {
            *cursor = ahead;
            cursor.expect(".")?;
            Test::In(list(cursor)?)
        }
        "is" => {
            *cursor = ahead;
            cursor.expect(".")?;
            is(cursor)?
        }
        "isdistinct" => {
            *cursor = ahead;
            cursor.expect(".")?;
            Test::Distinct(value(cursor, place)?)
        }
        _ => {
            if let Some(syntax) = SearchSyntax::of(word) {
                *cursor = ahead;
                search(cursor, syntax, place)?
            } else if let Some(operator) = Operator::of(word) {
                *cursor = ahead;
                compare(cursor, operator, place)?
            } else {
                return Err(cursor.error("\"not\" or operator (eq, gt, ...)"));
            }
        }
    };
    Ok(Operation { negated, test })
}

fn compare(cursor: &mut Cursor<'_>, operator: Operator, place: Place) -> Result<Test, Error> {
    let mut quantifier = None;
    if operator.takes_quantifier() && cursor.eat("(") {
        let word = cursor.take_while(|c| c.is_ascii_alphabetic());
        quantifier = Some(Quantifier::of(word).ok_or_else(|| cursor.error("any or all"))?);
        cursor.expect(")")?;
    }
    if cursor.at_end() {
        return Err(cursor.error("operator (eq, gt, ...)"));
    }
    cursor.expect(".")?;
    let mut value = value(cursor, place)?;
    if matches!(operator, Operator::Like | Operator::Ilike) {
        value = value.replace('*', "%");
    }
    Ok(Test::Compare {
        operator,
        quantifier,
        value,
    })
}

fn search(cursor: &mut Cursor<'_>, syntax: SearchSyntax, place: Place) -> Result<Test, Error> {
    let mut config = None;
    if cursor.eat("(") {
        config = Some(name::name(cursor)?);
        cursor.expect(")")?;
    }
    cursor.expect(".")?;
    let query = value(cursor, place)?;
    Ok(Test::Search {
        syntax,
        config,
        query,
    })
}

fn is(cursor: &mut Cursor<'_>) -> Result<Test, Error> {
    let mut ahead = cursor.clone();
    let word = ahead
        .take_while(|c| c.is_ascii_alphabetic() || c == '_')
        .to_ascii_lowercase();
    match Is::of(&word) {
        Some(found) if matches!(ahead.peek(), None | Some(',' | ')')) => {
            *cursor = ahead;
            Ok(Test::Is(found))
        }
        _ => Err(cursor.error("isVal: (null, not_null, true, false, unknown)")),
    }
}

fn value(cursor: &mut Cursor<'_>, place: Place) -> Result<String, Error> {
    if place == Place::Parameter {
        return Ok(cursor.take_while(|_| true).to_owned());
    }
    if let Some(text) = quoted_element(cursor) {
        return Ok(text);
    }
    if let Some(text) = array_literal(cursor) {
        return Ok(text);
    }
    Ok(cursor.take_while(|c| !matches!(c, ',' | ')')).to_owned())
}

/// `{a,b}` as a whole; inner commas don't end it.
fn array_literal(cursor: &mut Cursor<'_>) -> Option<String> {
    let mut ahead = cursor.clone();
    let start = ahead.rest();
    if !ahead.eat("{") {
        return None;
    }
    let mut depth = 1_usize;
    while depth > 0 {
        match ahead.next()? {
            '{' => depth += 1,
            '}' => depth -= 1,
            '"' => skip_quoted(&mut ahead)?,
            _ => {}
        }
    }
    let text = &start[..start.len() - ahead.rest().len()];
    *cursor = ahead;
    Some(text.to_owned())
}

fn skip_quoted(cursor: &mut Cursor<'_>) -> Option<()> {
    loop {
        match cursor.next()? {
            '"' => return Some(()),
            '\\' => {
                cursor.next()?;
            }
            _ => {}
        }
    }
}

/// `(a,"b,c",d)`. Blanks inside belong to the elements.
fn list(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Error> {
    cursor.expect("(")?;
    cursor.skip_blanks();
    if cursor.eat(")") {
        cursor.skip_blanks();
        return Ok(Vec::new());
    }
    let mut elements = Vec::new();
    loop {
        elements.push(match quoted_element(cursor) {
            Some(element) => element,
            None => cursor.take_while(|c| !matches!(c, ',' | ')')).to_owned(),
        });
        if cursor.eat(",") {
            continue;
        }
        cursor.expect(")")?;
        cursor.skip_blanks();
        return Ok(elements);
    }
}

/// A quoted element, only where its closing quote ends the element.
fn quoted_element(cursor: &mut Cursor<'_>) -> Option<String> {
    let mut ahead = cursor.clone();
    if ahead.peek() != Some('"') {
        return None;
    }
    let text = name::quoted(&mut ahead).ok()?;
    if !matches!(ahead.peek(), None | Some(',' | ')')) {
        return None;
    }
    *cursor = ahead;
    Some(text)
}

impl Operation {
    /// Prints as it would be read at `place`.
    pub(super) fn print(&self, f: &mut impl fmt::Write, place: Place) -> fmt::Result {
        if self.negated {
            f.write_str("not.")?;
        }
        match &self.test {
            Test::Compare {
                operator,
                quantifier,
                value,
            } => {
                f.write_str(operator.word())?;
                if let Some(quantifier) = quantifier {
                    write!(f, "({})", quantifier.word())?;
                }
                f.write_str(".")?;
                print_value(f, value, place)
            }
            Test::In(elements) => {
                f.write_str("in.(")?;
                for (index, element) in elements.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{}", Quoted(element))?;
                }
                f.write_str(")")
            }
            Test::Is(is) => write!(f, "is.{}", is.word()),
            Test::Distinct(value) => {
                f.write_str("isdistinct.")?;
                print_value(f, value, place)
            }
            Test::Search {
                syntax,
                config,
                query,
            } => {
                f.write_str(syntax.word())?;
                if let Some(config) = config {
                    write!(f, "({})", Quoted(config))?;
                }
                f.write_str(".")?;
                print_value(f, query, place)
            }
        }
    }
}

fn print_value(f: &mut impl fmt::Write, value: &str, place: Place) -> fmt::Result {
    match place {
        Place::Parameter => f.write_str(value),
        Place::Tree => write!(f, "{}", Quoted(value)),
    }
}
