//! What each method finds at a place, on the training pairs alone.

use std::collections::BTreeMap;

use nalgebra::DMatrix;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::config::{SubspaceConfig, SubspaceMethod};
use super::data::{At, batches, gather};
use super::fit::{FOLDS, Points};
use super::places::{Classes, Place, Split, arbitrary, target};
use super::space::Subspace;
use super::split::{Part, Series, part_of};
use super::train::{Batch, Problem};
use crate::error::{Error, Result};
use crate::methods::method::{Running, Subject, pairs_of, stop_if_asked};
use crate::metric::Target;
use crate::run::Progress;
use crate::task::Pair;

/// What subspaces are looked for in.
pub(super) struct Finder<'a> {
    pub on: Subject<'a>,
    pub config: &'a SubspaceConfig,
    pub running: &'a Running,
    pub split: Split,
    pub places: Vec<Place>,
    pub classes: Classes,
    pub arbitrary: Option<[u32; 2]>,
    pub series: Vec<Series>,
}

/// What passes over the training prompts gave.
pub(super) struct Learned {
    at: Vec<At>,
    batches: Vec<Batch>,
    /// Of each place, what needs no training.
    fitted: Vec<BTreeMap<SubspaceMethod, Vec<Subspace>>>,
    /// Of each place, what the matrix behind it reads.
    rows: Vec<DMatrix<f64>>,
}

/// What was found at a place under one name.
pub(super) struct Found {
    pub series: Series,
    /// Of a random subspace, each draw.
    pub spaces: Vec<Subspace>,
    /// What was found for arbitrary labels, where that is another.
    control: Option<Subspace>,
    /// The loss on the training pairs before and after.
    pub losses: Option<[f64; 2]>,
    /// How long the part is of a direction of length 1.
    pub length: f64,
    /// The share of points that a probe tells, of folds that it did not see: with their classes, and with shuffled ones.
    pub probe: Option<[f64; 2]>,
}

impl Found {
    /// What is judged by arbitrary labels.
    pub fn controls(&self) -> Vec<&Subspace> {
        match &self.control {
            Some(control) => vec![control],
            None => self.spaces.iter().collect(),
        }
    }
}

impl<'a> Finder<'a> {
    pub fn new(on: Subject<'a>, config: &'a SubspaceConfig, running: &'a Running) -> Result<Self> {
        Ok(Finder {
            split: Split::of(config, on.task)?,
            places: Place::all(config, &on.model.spec),
            classes: Classes::of(on.task),
            arbitrary: config.control.then(|| arbitrary(on.task, &on.model.spec)),
            series: Series::all(config),
            on,
            config,
            running,
        })
    }

    fn pairs(&self) -> Vec<&'a Pair> {
        pairs_of(self.on.task, &self.split.train)
    }

    /// Draws of one method at one place, which depend on neither the other places nor the other methods.
    fn rng(&self, place: &Place, method: SubspaceMethod, what: &str) -> ChaCha8Rng {
        let named = format!("{} {method} {what}", place.name());
        let hash = Sha256::digest(named.as_bytes());
        let mut rng = ChaCha8Rng::seed_from_u64(self.on.task.seed);
        let stream = hash[..8].try_into().expect("eight bytes");
        rng.set_stream(u64::from_le_bytes(stream));
        rng
    }

    fn has_training(&self) -> bool {
        self.config.methods.iter().any(|method| method.is_trained())
    }

    /// Passes over the training prompts, and whatever needs no more than these.
    pub fn learn(&self, progress: &dyn Progress) -> Result<Learned> {
        let at = gather(self.on, &self.places, &self.split.train, self.running.batch)?;
        stop_if_asked(progress)?;
        let fitted = self
            .places
            .iter()
            .zip(&at)
            .map(|(place, at)| self.fit(place, at));
        let fitted = fitted.collect::<Result<_>>()?;
        let spec = &self.on.model.spec;
        let kept = spec.d_model + 2 * spec.n_kv_heads * spec.d_head;
        let bytes = 4 * self.on.task.longest() * spec.n_layers * kept;
        let hold = 2 * self.split.train.len() * bytes <= self.running.memory_now() / 4;
        let batches = match self.has_training() {
            true => batches(self.on, &self.split.train, hold)?,
            false => Vec::new(),
        };
        let rows = (self.config.split.iter()).flat_map(|by| {
            let of = |place: &Place| by.row_space(self.on.model, place.hook);
            self.places.iter().map(of).collect::<Vec<_>>()
        });
        Ok(Learned {
            rows: rows.collect::<Result<_>>()?,
            at,
            batches,
            fitted,
        })
    }

    fn fit(&self, place: &Place, at: &At) -> Result<BTreeMap<SubspaceMethod, Vec<Subspace>>> {
        let points = self.points(at);
        let methods = self.config.methods.iter().copied();
        let fit = |method: SubspaceMethod| {
            let draws = match method {
                SubspaceMethod::Random => self.config.draws,
                _ => 1,
            };
            let dims = if method.takes_dims() {
                self.config.dims
            } else {
                1
            };
            let mut rng = self.rng(place, method, "");
            let spaces = (0..draws).map(|_| points.fit(method, dims, &mut rng));
            let spaces: Result<Vec<Subspace>, String> = spaces.collect();
            let refused = |reason| {
                let place = place.name();
                Error::invalid(format!(
                    "`{method}` finds no subspace at `{place}`: {reason}"
                ))
            };
            Ok((method, spaces.map_err(refused)?))
        };
        methods
            .filter(|method| !method.is_trained())
            .map(fit)
            .collect()
    }

    fn points(&self, at: &At) -> Points {
        at.points(&self.pairs(), &self.classes)
    }

    /// How evenly the training activations of a place spread over their dimensions.
    pub fn isotropy(&self, learned: &Learned, place: usize) -> f64 {
        self.points(&learned.at[place]).isotropy()
    }

    /// What each method finds at a place, and its parts.
    pub fn find(
        &self,
        learned: &Learned,
        at: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<Found>> {
        let mut all: Vec<Found> = Vec::with_capacity(self.series.len());
        for &series in &self.series {
            let found = match series.part {
                Part::Whole => self.whole(learned, at, series, progress)?,
                part => {
                    let whole = all.iter().rfind(|found| found.series.part == Part::Whole);
                    let whole = &whole.expect("it stands before its parts").spaces[0];
                    let (space, length) = part_of(whole, &learned.rows[at], part);
                    Found {
                        series,
                        spaces: vec![space],
                        control: None,
                        losses: None,
                        length,
                        probe: None,
                    }
                }
            };
            all.push(found);
        }
        Ok(all)
    }

    fn whole(
        &self,
        learned: &Learned,
        at: usize,
        series: Series,
        progress: &dyn Progress,
    ) -> Result<Found> {
        let (place, method) = (&self.places[at], series.method);
        let mut found = Found {
            series,
            spaces: Vec::new(),
            control: None,
            losses: None,
            length: 1.0,
            probe: None,
        };
        if !method.is_trained() {
            found.spaces = learned.fitted[at][&method].clone();
            if method == SubspaceMethod::Logistic {
                let mut rng = self.rng(place, method, "shuffled");
                let points = self.points(&learned.at[at]);
                found.probe = Some(points.cross_validated(FOLDS, &mut rng));
            }
            return Ok(found);
        }
        let trained = self.train(learned, at, method, None, progress)?;
        found.losses = Some([trained.before, trained.after]);
        found.spaces = vec![trained.space];
        if self.arbitrary.is_some() {
            let control = self.train(learned, at, method, self.arbitrary, progress)?;
            found.control = Some(control.space);
        }
        Ok(found)
    }

    fn train(
        &self,
        learned: &Learned,
        at: usize,
        method: SubspaceMethod,
        arbitrary: Option<[u32; 2]>,
        progress: &dyn Progress,
    ) -> Result<super::train::Trained> {
        let place = &self.places[at];
        let pairs = self.pairs();
        let targets = pairs
            .iter()
            .map(|pair| target(pair, &self.classes, arbitrary));
        let targets: Vec<Target> = targets.collect();
        let problem = Problem {
            model: self.on.model,
            hook: place.hook,
            layer: place.layer,
            batches: &learned.batches,
            values: &learned.at[at].values,
            positions: &learned.at[at].positions,
            targets: &targets,
        };
        let rng = self.rng(
            place,
            method,
            if arbitrary.is_some() { "control" } else { "" },
        );
        problem.train(
            method,
            self.config.dims,
            self.config.training,
            rng,
            progress,
        )
    }
}
