//! Steering vectors: a direction added to an activation while the model reads or writes, and how far that moves it on neutral text.
//!
//! `x <- x + alpha v` at chosen positions, of the prompt or of the generated tokens. The vector comes from a file: safetensors (also those that
//! [`subspace`](super::subspace) saves), or `.npy`. At `alpha` 0 no bit changes.
//!
//! Sources: Turner et al. 2023, "Activation Addition", arXiv 2308.10248; Bortoletto et al. 2024, "Benchmarking Mental State Representations in
//! Language Models", arXiv 2406.17513 (mean differences added at the end of the prompt and at all generated tokens).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use candle_core::Device;
use candle_core::safetensors::Load;
use safetensors::SafeTensors;

use crate::error::{Error, Result};
use crate::hooks::{Axes, Edit, Hook, Pos, Positions, Site};
use crate::metric::log_softmax;
use crate::model::Model;
use crate::model::checkpoint::read_at_most;
use crate::nn::host::{tensor, to_host};
use crate::run::{Logits, Request, run};
use crate::sae::read_npy;
use crate::spec::ModelSpec;
use crate::text::{one_line, visible};

/// A larger file is refused: all of it is held.
const FILE_LIMIT: u64 = 1 << 30;

/// A direction, and where it is to be added if its file says so.
#[derive(Debug, Clone, PartialEq)]
pub struct SteeringVector {
    /// The file, and the tensor in it.
    pub name: String,
    pub hook: Option<Hook>,
    pub values: Vec<f32>,
}

impl SteeringVector {
    /// From text: `FILE`, or `FILE:TENSOR` of a safetensors file with several. A tensor's whole name will do, or its end behind a dot
    /// (`das` of `blocks.2.hook_resid_post@END.das`), where one has it.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] for what is no vector of finite numbers, arrays of Python objects, and
    /// several tensors of which none is named.
    pub fn read(text: &str) -> Result<Self> {
        let (path, tensor) = match text.rsplit_once(':') {
            Some((path, tensor)) if !Path::new(text).exists() => (path, Some(tensor)),
            _ => (text, None),
        };
        let path = Path::new(path);
        let malformed = |reason: String| Error::Malformed {
            path: path.into(),
            format: "steering vector",
            reason,
        };
        if !path.exists() {
            return Err(Error::Missing {
                path: path.into(),
                hint: "a vector is a `.npy` or `.safetensors` file; `candlewick subspace` saves directions (`SubspaceConfig::save`)"
                    .into(),
            });
        }
        let is_npy = path.extension().is_some_and(|ending| ending == "npy");
        let (name, shape, values) = if is_npy {
            if tensor.is_some() {
                return Err(malformed(
                    "a `.npy` file has one array; name no tensor".into(),
                ));
            }
            let array = read_npy(path).map_err(malformed)?;
            let shape = array.dims().to_vec();
            (String::new(), shape, to_host(&array)?)
        } else {
            let bytes = read_at_most(path, FILE_LIMIT)?;
            let file = SafeTensors::deserialize(&bytes)
                .map_err(|error| malformed(one_line(&error.to_string())))?;
            let name = chosen(&file.names(), tensor).map_err(malformed)?;
            let view = file
                .tensor(&name)
                .map_err(|error| malformed(error.to_string()))?;
            let array = view.load(&Device::Cpu)?;
            if !array.dtype().is_float() {
                return Err(malformed(format!(
                    "`{}` is not of f64, f32, f16 or bf16",
                    visible(&name)
                )));
            }
            let shape = view.shape().to_vec();
            (name, shape, to_host(&array)?)
        };
        // A matrix of one row is a vector too.
        if shape.iter().filter(|&&dim| dim != 1).count() > 1 || values.is_empty() {
            return Err(malformed(format!(
                "it is {shape:?}, and a steering vector has one axis; save one row of it"
            )));
        }
        if values.iter().any(|x| !x.is_finite()) {
            return Err(malformed("one of its numbers is not finite".into()));
        }
        let hook = name.split_once('@').and_then(|(hook, _)| hook.parse().ok());
        let mut shown = visible(&path.display().to_string());
        if !name.is_empty() {
            shown += &format!(":{}", visible(&name));
        }
        Ok(SteeringVector {
            name: shown,
            hook,
            values,
        })
    }

    /// Its length, to choose `alpha` by.
    pub fn norm(&self) -> f64 {
        let squares = self.values.iter().map(|&x| f64::from(x).powi(2));
        squares.sum::<f64>().sqrt()
    }
}

/// The name that was meant.
fn chosen(names: &[&str], wanted: Option<&str>) -> std::result::Result<String, String> {
    let mut listed: Vec<&str> = names.to_vec();
    listed.sort_unstable();
    let fits = |name: &&str| match wanted {
        None => true,
        Some(wanted) => *name == wanted || name.ends_with(&format!(".{wanted}")),
    };
    let exact = listed.iter().find(|name| Some(**name) == wanted);
    let fitting: Vec<&str> = listed.iter().copied().filter(fits).collect();
    match (exact, &fitting[..]) {
        (Some(name), _) => Ok((*name).to_string()),
        (None, [name]) => Ok((*name).to_string()),
        _ => {
            let shown: Vec<String> = listed.iter().take(8).map(|name| visible(name)).collect();
            let more = if listed.len() > 8 { ", ..." } else { "" };
            Err(format!(
                "{}; name one of its tensors behind the file, as in `FILE:{}`: {}{more}",
                match wanted {
                    None => format!("it has {} tensors", listed.len()),
                    Some(wanted) => format!("`{}` is {} of them", visible(wanted), fitting.len()),
                },
                shown.first().map_or("NAME", String::as_str),
                shown.join(", ")
            ))
        }
    }
}

/// Where a vector is added: `all`; `prompt`; `generated`, or of these some steps, `generated:0-3`; positions and roles of the prompt, `-1`,
/// `@S2`. Several with commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteerAt(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    All,
    Prompt,
    /// Generated tokens from one to another, counted from 0; `None`: to the last.
    Generated(usize, Option<usize>),
    At(Pos),
}

impl SteerAt {
    /// Every position, also of what is generated.
    pub fn all() -> Self {
        SteerAt(vec![Part::All])
    }

    /// The positions in a prompt of `prompt_length` tokens that is continued by `max_tokens`. The last generated token is read by nobody,
    /// and has none.
    /// # Errors
    /// [`Error::Invalid`] for generated tokens that are never read.
    pub fn positions(&self, prompt_length: usize, max_tokens: usize) -> Result<Positions> {
        let reach = prompt_length + max_tokens.saturating_sub(1);
        let mut positions = Vec::new();
        for part in &self.0 {
            match part {
                Part::All => return Ok(Positions::All),
                Part::Prompt => positions.extend((0..prompt_length).map(Pos::Index)),
                Part::Generated(first, last) => {
                    let end = last.map_or(reach, |last| (prompt_length + last + 1).min(reach));
                    let start = prompt_length + first;
                    if start >= end {
                        return Err(Error::invalid(format!(
                            "`{part}` names no token that is read: of {max_tokens} generated ones the last is not; generate more \
                             (`GenerateRequest::max_tokens`), or name others"
                        )));
                    }
                    positions.extend((start..end).map(Pos::Index));
                }
                Part::At(pos) => positions.push(pos.clone()),
            }
        }
        Ok(Positions::These(positions))
    }
}

impl FromStr for SteerAt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::Parse {
            what: "where to steer",
            text: text.into(),
            reason: "write `all`, `prompt`, `generated`, `generated:0-3`, positions such as `-1`, roles such as `@S2`; several with commas"
                .into(),
        }
        };
        let step = |text: &str| text.parse::<usize>().map_err(|_| bad());
        let part = |text: &str| match text.trim() {
            "all" => Ok(Part::All),
            "prompt" => Ok(Part::Prompt),
            "generated" => Ok(Part::Generated(0, None)),
            other => match other.strip_prefix("generated:") {
                None => other.parse().map(Part::At).map_err(|_| bad()),
                Some(steps) => {
                    let (first, last) = steps.split_once('-').unwrap_or((steps, steps));
                    let (first, last) = (step(first)?, step(last)?);
                    match first <= last {
                        true => Ok(Part::Generated(first, Some(last))),
                        false => Err(bad()),
                    }
                }
            },
        };
        Ok(SteerAt(text.split(',').map(part).collect::<Result<_>>()?))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::All => f.write_str("all"),
            Part::Prompt => f.write_str("prompt"),
            Part::Generated(0, None) => f.write_str("generated"),
            Part::Generated(first, Some(last)) if first == last => write!(f, "generated:{first}"),
            Part::Generated(first, Some(last)) => write!(f, "generated:{first}-{last}"),
            Part::Generated(first, None) => write!(f, "generated:{first}-"),
            Part::At(pos) => write!(f, "{pos}"),
        }
    }
}

impl fmt::Display for SteerAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(Part::to_string).collect();
        f.write_str(&parts.join(","))
    }
}

/// A vector, times what, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    pub vector: SteeringVector,
    /// Hook and heads; its positions are not looked at.
    pub site: Site,
    pub alpha: f32,
    pub at: SteerAt,
}

impl Steering {
    /// From text: `FILE`, `FILE:TENSOR`, or `SITE=` in front, where the file does not say the hook or another one is meant (`resid_post2=v.npy`,
    /// `z3[head=1]=v.npy`).
    /// # Errors
    /// Those of [`SteeringVector::read`]; [`Error::Invalid`] where nobody says the hook.
    pub fn parse(text: &str, alpha: f32, at: SteerAt) -> Result<Self> {
        let split = text.rfind('=').filter(|_| !Path::new(text).exists());
        let (site, file) = match split {
            Some(at) => (Some(text[..at].parse::<Site>()?), &text[at + 1..]),
            None => (None, text),
        };
        let vector = SteeringVector::read(file)?;
        let site = site.or_else(|| vector.hook.map(Site::all));
        let Some(site) = site else {
            return Err(Error::invalid(format!(
                "`{}` does not say where it is to be added; write the hook in front, as in `resid_post2={file}`",
                vector.name
            )));
        };
        Ok(Steering {
            vector,
            site,
            alpha,
            at,
        })
    }

    /// # Errors
    /// Those of [`Site::check`]; [`Error::Invalid`] for a vector of another width, a hook that has none, and an `alpha` that is no number.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        self.site.check(spec)?;
        if !self.alpha.is_finite() {
            return Err(Error::invalid(format!(
                "a steering vector cannot be multiplied by {}; give a finite number",
                self.alpha
            )));
        }
        let hook = self.site.hook;
        let width = match hook.kind.axes(spec) {
            Axes::Stream => spec.d_model,
            Axes::Neurons => spec.d_mlp,
            Axes::Heads { width, .. } => width,
            Axes::Scale | Axes::Pattern => {
                return Err(Error::invalid(format!(
                    "`{hook}` holds no vector at a position; steer a stream, a head or neurons"
                )));
            }
        };
        if self.site.positions != Positions::All || self.vector.values.len() != width {
            return Err(Error::invalid(format!(
                "`{}` has {} numbers, and `{hook}` has {width} at each position{}",
                self.vector.name,
                self.vector.values.len(),
                match self.site.positions {
                    Positions::All => "",
                    _ => "; where it is added is said apart from the hook (`Steering::at`)",
                }
            )));
        }
        Ok(())
    }

    /// The edit for prompts of one length.
    /// # Errors
    /// Those of [`SteerAt::positions`].
    pub fn edit(&self, prompt_length: usize, max_tokens: usize) -> Result<Edit> {
        let positions = self.at.positions(prompt_length, max_tokens)?;
        Ok(self.edit_at(positions))
    }

    /// The edit at every position, for texts that nothing is generated after.
    pub fn everywhere(&self) -> Edit {
        self.edit_at(Positions::All)
    }

    fn edit_at(&self, positions: Positions) -> Edit {
        let site = Site {
            positions,
            ..self.site.clone()
        };
        let scaled: Vec<f32> = self.vector.values.iter().map(|x| self.alpha * x).collect();
        let name = format!("{} * {}", self.vector.name, self.alpha);
        Edit::with(site, &name, move |x| {
            let vector = tensor(scaled.clone(), scaled.len())?;
            let vector = vector.to_device(x.device())?.to_dtype(x.dtype())?;
            Ok(x.broadcast_add(&vector)?)
        })
    }
}

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (site, alpha) = (&self.site, self.alpha);
        write!(f, "{site} += {alpha} * {} @ {}", self.vector.name, self.at)
    }
}

/// How far edits move the next token on texts that they are not about: the divergence `KL(plain || edited)`, in the mean over all tokens of
/// all texts.
/// # Shapes
/// `texts`: token ids, of any lengths.
/// # Units
/// Nats a token.
/// # Errors
/// Those of [`run`]; [`Error::Invalid`] without a text.
pub fn drift(model: &Model, texts: &[Vec<u32>], edits: &[Edit]) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    for text in texts {
        let rows = |edits: &[Edit]| -> Result<Vec<Vec<f32>>> {
            let request = Request {
                edits,
                logits: Logits::All,
                ..Request::default()
            };
            let logits = run(model, std::slice::from_ref(text), &request)?.logits;
            Ok(logits.expect("asked for").get(0)?.to_vec2()?)
        };
        for (plain, edited) in rows(&[])?.iter().zip(&rows(edits)?) {
            let (p, q) = (log_softmax(plain), log_softmax(edited));
            let terms = p.iter().zip(&q).filter(|(p, _)| p.is_finite());
            sum += terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            tokens += 1;
        }
    }
    match tokens {
        0 => Err(Error::invalid("drift needs a text to be measured on")),
        tokens => Ok(sum / tokens as f64),
    }
}
