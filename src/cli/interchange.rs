//! `candlewick interchange`: does the model compute what a program says?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::hooks::Kind;
use candlewick::methods::interchange::{
    AlignedPart, Alignment, Decode, Draws, InputTable, ProgramFile, Side, WrittenPlace,
};
use candlewick::methods::subspace::{model_of_directions, read_subspaces};
use candlewick::methods::{InterchangeConfig, Layers, Method};
use candlewick::model::EMBEDDED;
use candlewick::task::END;
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Interchange interventions: does the model compute what a high-level program says?
///
/// A program (`--program FILE.toml`) has an `output` and variables, expressions over the words at the roles of a prompt (`S2`), their positions
/// (`S2.pos`) and columns of one's own (`--inputs`). A variable of the program is set to what it is in another prompt, and the activation
/// where the model may hold it (`--hook`, `--position`, each layer) to what it is in the run of that prompt: `score` (`iia`) is the share in which
/// model and program then say the same, over the exchanges that change what the program says. Beside it stand an exchange of a random place
/// of the same size and one with other sources; notes say how often the model agrees with the program at all, and how often one constant
/// answer would. A share of all exchanges, `iia_all`, is in the table beside it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick interchange
  candlewick interchange --position S2,END --variable first_repeats
  candlewick interchange --variable first@IO,second@S1 --together
  candlewick interchange --hook z --layers 1-3 --draws 40 --decode vocabulary
  candlewick interchange --variable answer --hook mlp_out --prompts clean -o mlps.parquet
  candlewick subspace --layers 2 --method das --save-direction d.safetensors -o found.parquet
  candlewick interchange --variable answer --subspace d.safetensors -o along.parquet")]
pub struct InterchangeArgs {
    /// A TOML file with the program, or one that ships: `ioi` [default: `ioi`, for the embedded model].
    #[arg(long, value_name = "FILE")]
    pub program: Option<String>,
    /// Only these variables, each also one that the file has for a helper, and where: `answer`, `first@IO` [default: those that the file
    /// has as tables].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub variable: Vec<String>,
    /// The activation: `resid_post`, `resid_pre`, `resid_mid`, `attn_out`, `mlp_out`, `z` (all heads) or `mlp.post` [default: the file's, else
    /// resid_post].
    #[arg(long)]
    pub hook: Option<Kind>,
    /// Only these layers, such as `0,3-5` [default: the file's, else all].
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Roles of the task, each by itself, at its last token [default: the file's, else END].
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    pub position: Vec<String>,
    /// Only these heads of `z`, neurons of `mlp.post` or dimensions of a stream, together [default: the file's, else all].
    #[arg(long, value_name = "UNITS", conflicts_with = "subspace")]
    pub units: Option<Layers>,
    /// Only along directions that `candlewick subspace` saved, at the places that it has; `FILE:METHOD` where it has several methods'.
    #[arg(long, value_name = "FILE")]
    pub subspace: Option<String>,
    /// Also all variables at once, each from a source of its own, layer by layer.
    #[arg(long)]
    pub together: bool,
    /// Columns besides those of the roles: a CSV file with `example` (the number of the pair), and if need be `side` (clean or corrupted).
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// The prompts that are bases and sources.
    #[arg(long, default_value = "both")]
    pub prompts: PromptChoice,
    /// Exchanges of each variable [default: 100].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// What the model's answer is: the likeliest of all that the program gives, or its likeliest token.
    #[arg(long, value_name = "HOW", default_value = "outputs")]
    pub decode: DecodeChoice,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PromptChoice {
    Both,
    Clean,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DecodeChoice {
    Outputs,
    Vocabulary,
}

/// The file that `--subspace` names, and the method behind it.
fn directions(typed: &str) -> (&Path, Option<&str>) {
    let whole = Path::new(typed);
    match typed.rsplit_once(':') {
        Some((path, method)) if !whole.exists() => (Path::new(path), Some(method)),
        _ => (whole, None),
    }
}

impl InterchangeArgs {
    fn file(&self) -> candlewick::Result<ProgramFile> {
        match &self.program {
            Some(path) => ProgramFile::open(path),
            None if self.common.model.model == EMBEDDED => ProgramFile::open("ioi"),
            None => Err(Error::invalid(
                "there is no program; name a file, or one that ships (`--program ioi`)",
            )),
        }
    }

    /// Where a variable is looked for: what is typed, else what the file says.
    fn alignment(&self, written: &WrittenPlace) -> candlewick::Result<Alignment> {
        let usual = Alignment::at([END]);
        let roles = match (self.position.as_slice(), &written.roles) {
            ([], None) => usual.roles,
            ([], Some(roles)) => roles.clone(),
            (typed, _) => typed.to_vec(),
        };
        let roles = roles
            .iter()
            .map(|role| role.trim().trim_start_matches('@').to_string());
        let part = match (
            &self.units,
            &self.subspace,
            &written.units,
            &written.subspace,
        ) {
            (Some(Layers(units)), ..) => AlignedPart::Units(units.clone()),
            (None, Some(typed), ..) => {
                let (path, method) = directions(typed);
                AlignedPart::Subspaces(read_subspaces(path, method)?)
            }
            (None, None, Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "a variable of the program has both `units` and `subspace`; leave one out",
                ));
            }
            (None, None, Some(units), None) => AlignedPart::Units(units.clone()),
            (None, None, None, Some(path)) => {
                AlignedPart::Subspaces(read_subspaces(path, written.method.as_deref())?)
            }
            (None, None, None, None) => AlignedPart::Whole,
        };
        Ok(Alignment {
            kind: self.hook.or(written.kind).unwrap_or(usual.kind),
            layers: self
                .layers
                .clone()
                .or(written.layers.clone())
                .unwrap_or_default(),
            roles: roles.collect(),
            part,
        })
    }
}

impl Ask for InterchangeArgs {
    fn default_out(&self) -> &'static str {
        "interchange.parquet"
    }

    fn mode(&self) -> Mode {
        let acts = [
            "program", "variable", "hook", "layers", "position", "units", "subspace", "together",
            "inputs", "prompts", "draws", "decode",
        ];
        Mode::new("`interchange`", &acts).idle(&["metric", "verify"])
    }

    fn reads(&self) -> Vec<&Path> {
        self.inputs.iter().map(PathBuf::as_path).collect()
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let ProgramFile {
            program,
            mut places,
        } = self.file()?;
        if !self.variable.is_empty() {
            let mut chosen = vec![None; places.len()];
            for typed in &self.variable {
                let (name, role) = match typed.split_once('@') {
                    Some((name, role)) => (name.trim(), Some(role.trim().to_string())),
                    None => (typed.trim(), None),
                };
                let at = program.find(name).ok_or_else(|| {
                    let known = program.variables.iter().map(|(name, _)| name.as_str());
                    Error::invalid(format!(
                        "program `{}` has no variable `{name}`; it has {}",
                        program.name,
                        known.collect::<Vec<_>>().join(", ")
                    ))
                })?;
                let mut place = places[at].clone().unwrap_or_default();
                if let Some(role) = role {
                    // Of a variable that is named several times, all that is said of it.
                    let earlier = chosen[at]
                        .as_ref()
                        .and_then(|earlier: &WrittenPlace| earlier.roles.clone());
                    place.roles = Some(earlier.into_iter().flatten().chain([role]).collect());
                }
                chosen[at] = Some(place);
            }
            if !self.position.is_empty() && self.variable.iter().any(|typed| typed.contains('@')) {
                return Err(Error::invalid(
                    "a variable that says where it is, as in `first@IO`, and positions of all variables (`Alignment::roles`) exclude each \
                     other; leave one out",
                )
                .into());
            }
            places = chosen;
        }
        let alignment = |place: &Option<WrittenPlace>| {
            place
                .as_ref()
                .map(|place| self.alignment(place))
                .transpose()
        };
        let alignments = places.iter().map(alignment).collect::<Result<_, _>>()?;
        let files: BTreeSet<&Path> = match (&self.units, &self.subspace) {
            (Some(_), _) => BTreeSet::new(),
            (None, Some(typed)) => BTreeSet::from([directions(typed).0]),
            (None, None) => (places.iter().flatten())
                .filter_map(|place| place.subspace.as_deref())
                .collect(),
        };
        let mut directions_of = Vec::new();
        for file in files {
            directions_of.extend(model_of_directions(file)?);
        }
        let usual = InterchangeConfig::new(program, Alignment::default());
        Ok(Box::new(InterchangeConfig {
            alignments,
            directions_of,
            together: self.together,
            sides: match self.prompts {
                PromptChoice::Both => vec![Side::Clean, Side::Corrupted],
                PromptChoice::Clean => vec![Side::Clean],
            },
            inputs: self.inputs.as_deref().map(InputTable::read).transpose()?,
            draws: self
                .draws
                .map_or_else(|| usual.draws.clone(), Draws::Balanced),
            decode: match self.decode {
                DecodeChoice::Outputs => Decode::Outputs,
                DecodeChoice::Vocabulary => Decode::Vocabulary,
            },
            ..usual
        }))
    }
}
