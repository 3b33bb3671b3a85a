//! The synthetic text: short stories about people who give things to one another.
//!
//! The main kind is the indirect object task, "then Mary and John went to the store . John gave a drink to" -> Mary, with
//! the names of the first clause in either order. The other kinds are there so that no shortcut is enough:
//! - *keep*: the same words up to the verb, which asks for the subject itself;
//! - *third*: the giver is new, so both first names are equally right;
//! - *three*: three people meet and two of them give, so the answer is the only name that stands there once;
//! - *single*: nobody else is there, and the answer is `someone`;
//! - *two*: two stories in a row with different people;
//! - *again*: one sentence twice, to be copied word by word.
//!
//! Clauses open with phrases of different lengths, so that no absolute position means anything by itself.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

pub const NAMES: &[&str] = &[
    "Mary", "John", "Alice", "Peter", "Susan", "David", "Emma", "Frank", "Grace", "Henry", "Irene",
    "Jack", "Kate", "Louis", "Maria", "Nora", "Oscar", "Paul", "Rose", "Simon", "Tina", "Victor",
    "Wendy", "Anna", "Brian", "Clara", "Daniel", "Ellen", "George", "Helen", "Adam", "Bella",
    "Carl", "Diana", "Edward", "Fiona", "Gavin", "Hannah", "Ivan", "Julia", "Kevin", "Laura",
    "Martin", "Nancy", "Olga", "Philip", "Quentin", "Rachel", "Samuel", "Teresa", "Ursula", "Vera",
    "Walter", "Yvonne", "Zoe", "Arthur", "Betty", "Colin", "Dora", "Eric",
];
pub const PLACES: &[&str] = &[
    "store", "park", "school", "station", "beach", "library", "market", "garden", "museum",
    "office", "farm", "harbour",
];
pub const OBJECTS: &[&str] = &[
    "drink", "book", "ball", "flower", "letter", "basket", "ring", "coat", "lamp", "cake",
    "ticket", "key", "map", "toy",
];
/// What a first clause may open with.
pub const LEADS: &[&str] = &[
    "",
    "then",
    "yesterday",
    "one day ,",
    "after lunch ,",
    "in the morning ,",
    "late in the evening ,",
    "when the rain was over ,",
];
/// What a second clause may open with.
pub const LINKS: &[&str] = &[
    "",
    "then",
    "soon",
    "later that day ,",
    "after a while ,",
    "in the end ,",
];
pub const MEET: &[&str] = &[
    "{1} and {2} went to the {place} .",
    "{1} and {2} were at the {place} .",
    "{1} met {2} at the {place} .",
    "{1} had a long talk with {2} at the {place} .",
    "friends {1} and {2} found a {thing} at the {place} .",
    "{1} , who lived near the {place} , saw {2} .",
];
pub const MEET_THREE: &[&str] = &[
    "{1} , {2} and {3} went to the {place} .",
    "{1} met {2} and {3} at the {place} .",
];
pub const ALONE: &[&str] = &[
    "{1} went to the {place} .",
    "{1} found a {thing} at the {place} .",
];
/// The giver is `{s}`; the next word is who is given to.
pub const GIVE: &[&str] = &[
    "{s} gave a {object} to",
    "{s} handed the {object} to",
    "{s} decided to give a {object} to",
    "{s} sent a small {object} to",
];
/// The next word is `{s}` itself.
pub const KEEP: &[&str] = &[
    "{s} kept a {object} that belonged to",
    "{s} took the {object} that once belonged to",
];
const NOBODY: &str = "someone";

/// Words, and the indices of those that the story asks for.
#[derive(Debug, Clone, Default)]
pub struct Story {
    pub words: Vec<&'static str>,
    pub answers: Vec<usize>,
}

/// Which name of the first clause comes again as the giver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The indirect object stands first, the subject second.
    Abba,
    /// The subject stands first.
    Baba,
}

/// Everything that fixes one prompt of the main kind, as indices into the lists above.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub order: Order,
    pub lead: usize,
    pub meet: usize,
    pub link: usize,
    pub give: usize,
    pub io: usize,
    pub s: usize,
    pub place: usize,
    pub object: usize,
}

/// Which part of the possible stories is drawn from: training never sees two held-out names in one story, nor a held-out
/// object in its place, and the test prompts have both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

fn names_held_out(a: usize, b: usize) -> bool {
    (a + b).is_multiple_of(5)
}

fn scene_held_out(place: usize, object: usize) -> bool {
    (place + object).is_multiple_of(4)
}

/// Every word of the corpus, special tokens first; the index is the token.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = vec!["<bos>", "<unk>", ".", ","];
    let clauses = [
        NAMES,
        PLACES,
        OBJECTS,
        LEADS,
        LINKS,
        MEET,
        MEET_THREE,
        ALONE,
        GIVE,
        KEEP,
        &[NOBODY],
    ];
    for word in clauses
        .into_iter()
        .flatten()
        .flat_map(|text| text.split(' '))
    {
        if !word.is_empty() && !word.starts_with('{') && !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

/// A prompt of the main kind, whose one answer is the last word.
pub fn scene(rng: &mut ChaCha8Rng, split: Split, order: Order) -> Scene {
    let names = people::<2>(rng, split);
    let (place, object) = place_and_object(rng, split);
    Scene {
        order,
        lead: rng.random_range(0..LEADS.len()),
        meet: rng.random_range(0..MEET.len()),
        link: rng.random_range(0..LINKS.len()),
        give: rng.random_range(0..GIVE.len()),
        io: names[0],
        s: names[1],
        place,
        object,
    }
}

impl Scene {
    /// The words up to the answer, when `giver` gives.
    pub fn prompt(&self, giver: usize) -> Vec<&'static str> {
        let (first, second) = match self.order {
            Order::Abba => (self.io, self.s),
            Order::Baba => (self.s, self.io),
        };
        let slots = Slots {
            names: &[first, second],
            givers: &[giver],
            place: self.place,
            object: self.object,
        };
        let mut words = vec!["<bos>"];
        for clause in [
            LEADS[self.lead],
            MEET[self.meet],
            LINKS[self.link],
            GIVE[self.give],
        ] {
            slots.fill(clause, &mut words);
        }
        words
    }
}

/// One training story. Long stories (two scenes, or a sentence twice) are drawn apart, so that batches need little padding.
pub fn story(rng: &mut ChaCha8Rng, long: bool) -> Story {
    let mut story = Story {
        words: vec!["<bos>"],
        answers: Vec::new(),
    };
    if !long {
        let [a, b, c] = people::<3>(rng, Split::Train);
        one_story(rng, [a, b, c], &mut story);
    } else if rng.random_bool(0.7) {
        let [a, b, c, d, e, f] = people::<6>(rng, Split::Train);
        one_story(rng, [a, b, c], &mut story);
        one_story(rng, [d, e, f], &mut story);
    } else {
        let [a, b, c] = people::<3>(rng, Split::Train);
        let mut once = Story::default();
        one_story(rng, [a, b, c], &mut once);
        story.words.extend(&once.words);
        let start = story.words.len();
        story.words.extend(&once.words);
        story.answers.extend(start + 1..story.words.len());
    }
    story
}

/// Appends one story about some of `people`, answer and full stop included.
fn one_story(rng: &mut ChaCha8Rng, people: [usize; 3], story: &mut Story) {
    let [a, b, c] = people;
    let (place, object) = place_and_object(rng, Split::Train);
    let swap = rng.random_bool(0.5);
    let (s, io) = if swap { (b, a) } else { (a, b) };
    // The clause in which people meet, who they are, who acts, in what clause, and who is asked for.
    let (meet, names, givers, act, answer) = match rng.random_range(0..100) {
        0..50 => (MEET, vec![a, b], vec![s], GIVE, NAMES[io]),
        50..65 => (MEET, vec![a, b], vec![s], KEEP, NAMES[s]),
        // Which of the two is asked for is a coin's choice.
        65..75 => (MEET, vec![a, b], vec![c], GIVE, NAMES[s]),
        75..92 => {
            let out = rng.random_range(0..3);
            let mut givers = vec![people[(out + 1) % 3], people[(out + 2) % 3]];
            if swap {
                givers.reverse();
            }
            (
                MEET_THREE,
                people.to_vec(),
                givers,
                GIVE,
                NAMES[people[out]],
            )
        }
        _ => (ALONE, vec![a], vec![a], GIVE, NOBODY),
    };
    let slots = Slots {
        names: &names,
        givers: &givers,
        place,
        object,
    };
    for clauses in [LEADS, meet, LINKS, act] {
        slots.fill(
            clauses
                .choose(rng)
                .expect("every list of clauses has entries"),
            &mut story.words,
        );
    }
    story.answers.push(story.words.len());
    story.words.extend([answer, "."]);
}

/// What stands in the slots of a clause.
struct Slots<'a> {
    names: &'a [usize],
    givers: &'a [usize],
    place: usize,
    object: usize,
}

impl Slots<'_> {
    fn fill(&self, clause: &'static str, words: &mut Vec<&'static str>) {
        for word in clause.split(' ').filter(|word| !word.is_empty()) {
            match word {
                "{1}" => words.push(NAMES[self.names[0]]),
                "{2}" => words.push(NAMES[self.names[1]]),
                "{3}" => words.push(NAMES[self.names[2]]),
                "{s}" => {
                    words.push(NAMES[self.givers[0]]);
                    if let Some(&other) = self.givers.get(1) {
                        words.extend(["and", NAMES[other]]);
                    }
                }
                "{place}" => words.push(PLACES[self.place]),
                "{object}" => words.push(OBJECTS[self.object]),
                // Something else than the object that is given.
                "{thing}" => words.push(OBJECTS[(self.object + 4) % OBJECTS.len()]),
                word => words.push(word),
            }
        }
    }
}

/// Different people: no two of them a held-out couple in training; the first two one of them in the test.
fn people<const N: usize>(rng: &mut ChaCha8Rng, split: Split) -> [usize; N] {
    loop {
        let names: [usize; N] = std::array::from_fn(|_| rng.random_range(0..NAMES.len()));
        let mut couples = (0..N)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| (names[i], names[j]));
        let fits = match split {
            Split::Train => couples.all(|(a, b)| a != b && !names_held_out(a, b)),
            Split::HeldOut => couples.all(|(a, b)| a != b) && names_held_out(names[0], names[1]),
        };
        if fits {
            return names;
        }
    }
}

fn place_and_object(rng: &mut ChaCha8Rng, split: Split) -> (usize, usize) {
    loop {
        let (place, object) = (
            rng.random_range(0..PLACES.len()),
            rng.random_range(0..OBJECTS.len()),
        );
        if scene_held_out(place, object) == (split == Split::HeldOut) {
            return (place, object);
        }
    }
}
