//! The generators: what `{{…}}` can produce, always from a seeded source.

use std::fmt::Write as _;

use super::words::{CITIES, COMPANY_FIRST, COMPANY_LAST, FIRST_NAMES, LAST_NAMES, WORDS};
use crate::calendar;

/// A source of values.
#[derive(Debug, Clone, PartialEq)]
pub enum Generator {
    /// A person's name.
    Name,
    /// A first name.
    FirstName,
    /// A last name.
    LastName,
    /// A company's name.
    Company,
    /// An e-mail address, never the same twice.
    Email,
    /// A telephone number.
    Phone,
    /// A city.
    City,
    /// So many words.
    Words(u32),
    /// An integer between two, both included.
    Int(i64, i64),
    /// A number between two with so many decimal places.
    Decimal(f64, f64, usize),
    /// `true` or `false`.
    Bool,
    /// A random UUID, never the same twice.
    Uuid,
    /// A date so many days from today, between two.
    Date(i64, i64),
    /// A moment so many days from now, between two.
    Timestamp(i64, i64),
    /// One of several texts.
    Choice(Vec<String>),
    /// A number that rises by one with each use within a thread.
    Sequence,
    /// The tenant's slug.
    Tenant,
}

/// What a value is generated from.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The seeded source of choices.
    pub random: &'a mut fastrand::Rng,
    /// Seeded by the run, for values that must differ between runs.
    pub fresh: &'a mut fastrand::Rng,
    /// The thread's counter.
    pub sequence: &'a mut u64,
    /// A short text that differs between runs and threads.
    pub run: &'a str,
    /// The tenant's slug.
    pub tenant: &'a str,
    /// Now, in seconds since 1970.
    pub now: i64,
}

impl Generator {
    /// How each is written.
    pub const FORMS: [&'static str; 17] = [
        "{{name}}",
        "{{first_name}}",
        "{{last_name}}",
        "{{company}}",
        "{{email}}",
        "{{phone}}",
        "{{city}}",
        "{{words N}}",
        "{{int MIN MAX}}",
        "{{decimal MIN MAX PLACES}}",
        "{{bool}}",
        "{{uuid}}",
        "{{date FROM_DAYS TO_DAYS}}",
        "{{timestamp FROM_DAYS TO_DAYS}}",
        "{{choice A|B|C}}",
        "{{seq}}",
        "{{tenant}}",
    ];

    /// The generator of a name and its argument.
    pub(super) fn parse(name: &str, argument: &str) -> Result<Self, String> {
        let plain = |generator| {
            if argument.is_empty() {
                Ok(generator)
            } else {
                Err(format!("{{{{{name}}}}} takes no argument"))
            }
        };
        match name {
            "name" => plain(Generator::Name),
            "first_name" => plain(Generator::FirstName),
            "last_name" => plain(Generator::LastName),
            "company" => plain(Generator::Company),
            "email" => plain(Generator::Email),
            "phone" => plain(Generator::Phone),
            "city" => plain(Generator::City),
            "bool" => plain(Generator::Bool),
            "uuid" => plain(Generator::Uuid),
            "seq" => plain(Generator::Sequence),
            "tenant" => plain(Generator::Tenant),
            "words" => {
                let [count] = numbers("words N", argument)?;
                Ok(Generator::Words(count))
            }
            "int" => {
                let [min, max] = ascending("int MIN MAX", numbers("int MIN MAX", argument)?)?;
                Ok(Generator::Int(min, max))
            }
            "decimal" => {
                let form = "decimal MIN MAX PLACES";
                let [min, max, places] = numbers::<f64, 3>(form, argument)?;
                let [min, max] = ascending(form, [min, max])?;
                Ok(Generator::Decimal(
                    min,
                    max,
                    places.clamp(0.0, 12.0) as usize,
                ))
            }
            "date" => {
                let form = "date FROM_DAYS TO_DAYS";
                let [from, to] = ascending(form, numbers(form, argument)?)?;
                Ok(Generator::Date(from, to))
            }
            "timestamp" => {
                let form = "timestamp FROM_DAYS TO_DAYS";
                let [from, to] = ascending(form, numbers(form, argument)?)?;
                Ok(Generator::Timestamp(from, to))
            }
            "choice" if !argument.is_empty() => Ok(Generator::Choice(
                argument
                    .split('|')
                    .map(|choice| choice.trim().to_owned())
                    .collect(),
            )),
            "choice" => Err("write {{choice A|B|C}}".to_owned()),
            _ => Err(format!(
                "no generator is called {name:?}; there are {{{{canary}}}}, {{{{pick LIST}}}}, {{{{take LIST}}}}, {}",
                Self::FORMS.join(", ")
            )),
        }
    }

    /// Whether its values are JSON texts; the others are numbers or truth
    /// values.
    pub fn is_text(&self) -> bool {
        !matches!(
            self,
            Generator::Int(..) | Generator::Decimal(..) | Generator::Bool | Generator::Sequence
        )
    }

    /// Appends a value to `out`.
    pub fn write(&self, from: &mut Surroundings<'_>, out: &mut String) {
        match self {
            Generator::Name => {
                out.push_str(one_of(from.random, &FIRST_NAMES));
                out.push(' ');
                out.push_str(one_of(from.random, &LAST_NAMES));
            }
            Generator::FirstName => out.push_str(one_of(from.random, &FIRST_NAMES)),
            Generator::LastName => out.push_str(one_of(from.random, &LAST_NAMES)),
            Generator::Company => {
                out.push_str(one_of(from.random, &COMPANY_FIRST));
                out.push(' ');
                out.push_str(one_of(from.random, &COMPANY_LAST));
            }
            Generator::Email => {
                let first = one_of(from.random, &FIRST_NAMES).to_lowercase();
                let last = one_of(from.random, &LAST_NAMES).to_lowercase();
                let number = next(from.sequence);
                put(
                    out,
                    format_args!("{first}.{last}.{}{number}@example.com", from.run),
                );
            }
            Generator::Phone => {
                let number = from.random.u64(1_000_000..10_000_000);
                put(out, format_args!("+1555{number}"));
            }
            Generator::City => out.push_str(one_of(from.random, &CITIES)),
            Generator::Words(count) => {
                for place in 0..*count {
                    if place > 0 {
                        out.push(' ');
                    }
                    out.push_str(one_of(from.random, &WORDS));
                }
            }
            Generator::Int(min, max) => put(out, format_args!("{}", from.random.i64(*min..=*max))),
            Generator::Decimal(min, max, places) => {
                let value = min + (max - min) * from.random.f64();
                put(out, format_args!("{value:.places$}"));
            }
            Generator::Bool => out.push_str(if from.random.bool() { "true" } else { "false" }),
            Generator::Uuid => {
                let uuid =
                    uuid::Builder::from_random_bytes(from.fresh.u128(..).to_be_bytes()).into_uuid();
                put(out, format_args!("{uuid}"));
            }
            Generator::Date(first, last) => {
                let today = from.now.div_euclid(86_400);
                out.push_str(&calendar::date(today + from.random.i64(*first..=*last)));
            }
            Generator::Timestamp(first, last) => {
                let offset = from.random.i64(first * 86_400..=last * 86_400);
                out.push_str(&calendar::timestamp(from.now + offset));
            }
            Generator::Choice(choices) => {
                if let Some(choice) = from.random.choice(choices) {
                    out.push_str(choice);
                }
            }
            Generator::Sequence => {
                let number = next(from.sequence);
                put(out, format_args!("{number}"));
            }
            Generator::Tenant => out.push_str(from.tenant),
        }
    }
}

fn one_of(random: &mut fastrand::Rng, words: &[&'static str]) -> &'static str {
    words[random.usize(..words.len())]
}

fn next(sequence: &mut u64) -> u64 {
    *sequence += 1;
    *sequence
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn numbers<T: std::str::FromStr + Copy + Default, const N: usize>(
    form: &str,
    argument: &str,
) -> Result<[T; N], String> {
    let refuse = || format!("write {{{{{form}}}}} with numbers");
    let mut numbers = [T::default(); N];
    let mut words = argument.split_whitespace();
    for number in &mut numbers {
        *number = words
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(refuse)?;
    }
    if words.next().is_some() {
        Err(refuse())
    } else {
        Ok(numbers)
    }
}

fn ascending<T: PartialOrd + Copy>(form: &str, [min, max]: [T; 2]) -> Result<[T; 2], String> {
    if min <= max {
        Ok([min, max])
    } else {
        Err(format!(
            "{{{{{form}}}}}: the first number is above the second"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{Part, Template};

    fn generate(form: &str, seed: u64) -> String {
        let template: Template = form.parse().unwrap();
        let [Part::Value(generator)] = template.parts() else {
            panic!("{form}")
        };
        let mut out = String::new();
        let mut from = Surroundings {
            random: &mut fastrand::Rng::with_seed(seed),
            fresh: &mut fastrand::Rng::with_seed(9),
            sequence: &mut 0,
            run: "r1",
            tenant: "acme",
            now: 1_000_000_000,
        };
        generator.write(&mut from, &mut out);
        out
    }

    #[test]
    fn every_documented_form_generates_something_and_repeats_with_the_seed() {
        for form in Generator::FORMS {
            let form = form
                .replace("FROM_DAYS TO_DAYS", "-30 0")
                .replace("MIN MAX PLACES", "0 10 2")
                .replace("MIN MAX", "1 100")
                .replace(" N", " 3");
            let value = generate(&form, 5);
            assert!(!value.is_empty(), "{form}");
            assert_eq!(value, generate(&form, 5), "{form}");
        }
    }

    #[test]
    fn values_keep_their_bounds() {
        for seed in 0..200 {
            let int: i64 = generate("{{int -2 2}}", seed).parse().unwrap();
            assert!((-2..=2).contains(&int));
            let decimal = generate("{{decimal 1 2 3}}", seed);
            assert!(
                (1.0..=2.0).contains(&decimal.parse::<f64>().unwrap()) && decimal.len() == 5,
                "{decimal}"
            );
            let date = generate("{{date -1 0}}", seed);
            assert!(date == "2001-09-08" || date == "2001-09-09", "{date}");
            assert!(["a", "b c"].contains(&generate("{{choice a|b c}}", seed).as_str()));
        }
    }
}
