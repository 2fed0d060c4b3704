//! Requests out of a seeded grammar. Each has a generator of its own, so that
//! the number of a request and the seed are enough to make it again.

mod call;
mod condition;
mod select;
mod value;
mod write;

use schema::catalog::Relation;

use crate::case::{Case, Section};
use crate::world::{World, quoted};
use select::Level;

pub(crate) struct Grammar<'a> {
    world: &'a World,
    rng: fastrand::Rng,
}

impl<'a> Grammar<'a> {
    pub(crate) fn new(world: &'a World, seed: u64, number: u64) -> Self {
        let mixed =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd134_2543_de82_ef95);
        Self {
            world,
            rng: fastrand::Rng::with_seed(mixed),
        }
    }

    /// The request.
    pub(crate) fn case(&mut self) -> Case {
        match self.rng.u8(0..100) {
            0..14 => self.read(Section::Filters),
            14..20 => self.read(Section::Logic),
            20..28 => self.read(Section::Select),
            28..33 => self.read(Section::Order),
            33..40 => self.read(Section::Pages),
            40..45 => self.read(Section::Media),
            45..58 => self.read(Section::Embeds),
            58..62 => self.read(Section::Spreads),
            62..67 => self.read(Section::Aggregates),
            67..72 => self.insert(),
            72..76 => self.upsert(),
            76..81 => self.update(),
            81..84 => self.delete(),
            84..88 => self.call_by_get(),
            88..93 => self.call_by_post(),
            93..96 => self.schemas(),
            _ => self.malformed(),
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(0..100) < percent
    }

    fn pick<'b, T>(&mut self, items: &'b [T]) -> &'b T {
        &items[self.rng.usize(0..items.len())]
    }

    fn word(&mut self, words: &[&'static str]) -> &'static str {
        words[self.rng.usize(0..words.len())]
    }

    /// A relation; the richer ones more often.
    fn relation(&mut self) -> &'a Relation {
        let world = self.world;
        if self.chance(55) {
            let name = self.word(&["shows", "people", "venues"]);
            return world.relation(name);
        }
        let relations = world.relations();
        relations[self.rng.usize(0..relations.len())]
    }

    /// A read that dwells on one section.
    fn read(&mut self, section: Section) -> Case {
        let relation = self.relation();
        let mut case = Case::get(&format!("/{}", relation.name.name.as_str()));
        case.section = section;
        let mut levels = Vec::new();
        let depth = match section {
            Section::Embeds => 3,
            Section::Spreads => 2,
            _ if self.chance(20) => 1,
            _ => 0,
        };
        let dwells = matches!(
            section,
            Section::Select | Section::Embeds | Section::Spreads | Section::Aggregates
        );
        if dwells || self.chance(40) {
            let select = self.select(section, relation, depth, &[], &mut levels);
            case.params.push(("select".into(), select));
        } else {
            levels.push(Level::plain(relation));
        }
        self.conditions(section, &levels, &mut case);
        self.orders_and_pages(section, &levels, &mut case);
        self.rng.shuffle(&mut case.params);
        self.read_headers(section, &levels, &mut case);
        case
    }

    fn orders_and_pages(&mut self, section: Section, levels: &[Level<'a>], case: &mut Case) {
        for level in levels {
            let top = level.path.is_empty();
            let dwells = section == Section::Order || section == Section::Pages;
            let paged = match (section, top) {
                (Section::Pages, true) => true,
                (Section::Pages, false) => self.chance(50),
                _ => self.chance(12),
            };
            let paged = paged && !level.grouped && level.to_many;
            // Where rows above depend on them, no page may hide all of them.
            let tested = case
                .params
                .iter()
                .any(|(key, _)| *key == level.path.join("."));
            let inner = level.inner || tested;
            let ordered = paged || self.chance(if dwells { 90 } else { 75 });
            if !level.to_many && !top {
                continue;
            }
            if level.grouped {
                case.ordered = false;
                continue;
            }
            if ordered {
                let terms = self.order(section, level, levels);
                case.params.push((level.key("order"), terms));
            } else {
                case.ordered = false;
            }
            if paged {
                if self.chance(80) {
                    let limit = self.rng.u8(u8::from(inner)..5).to_string();
                    case.params.push((level.key("limit"), limit));
                }
                if self.chance(50) && !inner {
                    let offset = self.rng.u8(0..7).to_string();
                    case.params.push((level.key("offset"), offset));
                }
            }
        }
    }

    /// Some terms, and the key behind them, so that the order is complete.
    fn order(&mut self, section: Section, level: &Level<'a>, levels: &[Level<'a>]) -> String {
        let mut terms = Vec::new();
        let count = match section {
            Section::Order => self.rng.usize(1..4),
            _ => self.rng.usize(0..2),
        };
        for _ in 0..count {
            let mut term = match self.rng.u8(0..10) {
                0 if section == Section::Order => self.related_order(level, levels),
                _ => self.any_field(level.relation),
            };
            if self.chance(60) {
                term += self.word(&[".asc", ".desc"]);
            }
            if self.chance(30) {
                term += self.word(&[".nullsfirst", ".nullslast"]);
            }
            terms.push(term);
        }
        for column in self.world.key(level.relation) {
            let direction = self.word(&["", ".asc", ".desc"]);
            terms.push(format!("{}{direction}", quoted(column.name.as_str())));
        }
        terms.join(",")
    }

    /// `rel(column)` of a to-one embed, mostly.
    fn related_order(&mut self, level: &Level<'a>, levels: &[Level<'a>]) -> String {
        let below: Vec<&Level<'a>> = levels
            .iter()
            .filter(|other| {
                other.path.len() == level.path.len() + 1 && other.path.starts_with(&level.path)
            })
            .collect();
        let Some(below) = below.first() else {
            return self.any_field(level.relation);
        };
        let name = below.path.last().map_or("", String::as_str);
        let field = self.any_field(below.relation);
        format!("{name}({field})")
    }

    /// A column, a place in its JSON, or a computed field.
    fn any_field(&mut self, relation: &'a Relation) -> String {
        let computed = self.world.computed(relation);
        if !computed.is_empty() && self.chance(8) {
            return (self.word(computed)).to_owned();
        }
        let column = self.pick(&relation.columns);
        let mut text = quoted(column.name.as_str());
        if matches!(&*column.base_type, "json" | "jsonb") && self.chance(60) {
            text += self.json_path();
        }
        text
    }

    fn json_path(&mut self) -> &'static str {
        self.word(&[
            "->city->name",
            "->city->>name",
            "->>ok",
            "->years->0",
            "->years->>-1",
            "->cast->>size",
            "->reviews->0->>stars",
            "->>nothing",
            "->cast",
            "->a->>1",
            "->1->deep->0",
        ])
    }

    fn read_headers(&mut self, section: Section, levels: &[Level<'a>], case: &mut Case) {
        if section == Section::Media || self.chance(6) {
            let accept = self.word(&[
                "application/json",
                "*/*",
                "text/csv",
                "application/vnd.pgrst.object+json",
                "application/vnd.pgrst.object",
                "application/vnd.pgrst.object+json;nulls=stripped",
                "application/vnd.pgrst.array+json;nulls=stripped",
                "application/vnd.pgrst.array+json",
                "text/csv, application/json",
                "text/html, application/json;q=0.5, */*;q=0.1",
                "application/json;q=0.1, text/csv",
                "text/xml",
            ]);
            case.header("Accept", accept);
        }
        let mut prefer = Vec::new();
        if self.chance(if section == Section::Pages { 70 } else { 12 }) {
            prefer.push("count=exact");
        }
        if self.chance(4) {
            prefer.push("handling=lenient");
        }
        if self.chance(3) {
            prefer.push("timezone=America/Bogota");
        }
        if !prefer.is_empty() {
            case.header("Prefer", prefer.join(", "));
        }
        let single = levels.first().is_some_and(|level| !level.grouped);
        if section == Section::Pages && single && case.param("order").is_some() && self.chance(25) {
            let from = self.rng.u8(0..7);
            let range = match self.rng.u8(0..3) {
                0 => format!("{from}-"),
                _ => format!("{from}-{}", from + self.rng.u8(0..5)),
            };
            case.header("Range", range);
        }
        if self.chance(5) {
            case.method = "HEAD";
        }
    }

    fn schemas(&mut self) -> Case {
        let mut case = match self.rng.u8(0..8) {
            0 => Case::get("/boxes"),
            1 => Case::get("/shows"),
            2 => {
                let mut case = Case::get("/boxes");
                case.params
                    .push(("select".into(), "*,shows(*),boxes(*)".into()));
                case
            }
            3 => Case::get("/rpc/box_count"),
            _ => {
                let relation = self.relation();
                Case::get(&format!("/{}", relation.name.name.as_str()))
            }
        };
        case.section = Section::Schemas;
        case.ordered = false;
        match self.rng.u8(0..6) {
            0 => case.header("Accept-Profile", "archive"),
            1 => case.header("Accept-Profile", "public"),
            2 => case.header("Accept-Profile", "none"),
            3 => case.header("Content-Profile", "archive"),
            _ => {}
        }
        match self.rng.u8(0..5) {
            0 => case.method = "HEAD",
            1 | 2 => case.method = "OPTIONS",
            _ => {}
        }
        if self.chance(20) {
            case.path = (self.word(&[
                "/rpc/add",
                "/rpc/no_arguments",
                "/rpc/rename",
                "/rpc/nothing",
                "/rpc/names",
                "/nowhere",
                "/rpc/nowhere",
                "/shows/1",
                "/kinds",
            ]))
            .to_owned();
        }
        case
    }

    /// A request that something is wrong with.
    fn malformed(&mut self) -> Case {
        let relation = self.relation();
        let mut case = Case::get(&format!("/{}", relation.name.name.as_str()));
        case.section = Section::Errors;
        case.ordered = false;
        let column = quoted(self.pick(&relation.columns).name.as_str());
        let (key, value) = match self.rng.u8(0..24) {
            0 => ("select", format!("{column},")),
            1 => ("select", format!("{column}(")),
            2 => ("select", format!("{column}::")),
            3 => ("select", "nothing".into()),
            4 => ("select", "nothing(*)".into()),
            5 => ("select", format!("{column}::nothing")),
            6 => ("select", format!("{column}.med()")),
            7 => ("order", format!("{column}.up")),
            8 => ("order", "nothing".into()),
            9 => ("order", format!("{column}.desc.asc")),
            10 => ("or", format!("({column}.eq.1")),
            11 => ("or", "()".into()),
            12 => ("or", format!("({column}.is.what)")),
            13 => ("and", format!("({column}.eq.1,nothing.eq.2)")),
            14 => ("limit", "-1".into()),
            15 => ("limit", "many".into()),
            16 => ("offset", "-3".into()),
            17 => (column.as_str(), "1".into()),
            18 => (column.as_str(), "eq".into()),
            19 => (column.as_str(), "like(some).{a}".into()),
            20 => ("nothing", "eq.1".into()),
            21 => ("nothing.id", "eq.1".into()),
            22 => ("nothing.order", "id".into()),
            _ => ("select", "*,shows!nothing(*)".into()),
        };
        case.params.push((key.to_owned(), value));
        if self.chance(15) {
            case.method = self.word(&["PUT", "PATCH", "POST"]);
            case.header("Prefer", "tx=rollback");
            case.header(
                "Content-Type",
                self.word(&["application/json", "text/html", "text/csv"]),
            );
            case.body = Some(
                (self.word(&[
                    "",
                    "{",
                    "[1]",
                    "{}",
                    "[]",
                    "null",
                    "\"x\"",
                    "[{\"id\":1},{\"x\":2}]",
                    "{\"nothing\":1}",
                ]))
                .to_owned(),
            );
        }
        case
    }
}
