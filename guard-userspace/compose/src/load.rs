//! Loads the project that Compose would run: replaces variables, follows `include` and `extends`, and merges files.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    ComposeWarning,
    environment::Environment,
    interpolate::interpolate,
    merge::merge,
    service::check_ports,
    source::{ComposeError, Place, STANDARD_INPUT, SourceFile},
    yaml::{self, Mapping, MappingEntry, Node, NodeBudget, Value},
};

/// The longest chain of `extends`, and of `include`.
const MAX_CHAIN: usize = 32;

/// The most files that one project may read.
const MAX_FILES: usize = 200;

/// Reads projects, within limits.
pub struct Loader {
    budget: NodeBudget,
    files: usize,
    /// The files that were read, by location.
    sources: HashMap<PathBuf, Arc<SourceFile>>,
    pub warnings: Vec<ComposeWarning>,
}

/// One of the files that are merged.
struct Layer<'a> {
    environment: Rc<Environment>,
    /// The chain of `include` that leads to this file, which is the last.
    chain: &'a [PathBuf],
}

/// The documents of files, by path: `extends` may name a file in every service.
type Cache = HashMap<PathBuf, Rc<Vec<Node>>>;

impl Loader {
    pub fn new() -> Self {
        Self {
            budget: NodeBudget::default(),
            files: 0,
            sources: HashMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Loads the project of these files, later files on top of earlier ones.
    pub fn project(
        &mut self,
        files: &[PathBuf],
        environment: &Rc<Environment>,
        env_files: Option<&[PathBuf]>,
    ) -> Result<Node, ComposeError> {
        let input = Path::new(STANDARD_INPUT);
        if files.iter().any(|file| file == input) {
            let source = SourceFile::read_standard_input()?;
            self.sources.insert(input.to_owned(), source);
        }
        self.layer(files, None, environment, env_files, &[])
    }

    fn layer(
        &mut self,
        files: &[PathBuf],
        folder: Option<&Path>,
        environment: &Rc<Environment>,
        env_files: Option<&[PathBuf]>,
        chain: &[PathBuf],
    ) -> Result<Node, ComposeError> {
        let is_file = |file: &&PathBuf| file.as_path() != Path::new(STANDARD_INPUT);
        let first = files.iter().find(is_file).or(files.first());
        let first = first.map_or(Path::new(""), PathBuf::as_path);
        let folder = folder.unwrap_or_else(|| folder_of(first));
        let environment = self.environment(folder, environment, env_files)?;
        let mut cache = Cache::new();
        let mut project: Option<Node> = None;
        for file in files {
            let mut chain = chain.to_vec();
            chain.push(identity(file));
            let layer = Layer {
                environment: Rc::clone(&environment),
                chain: &chain,
            };
            for document in self.documents(file, &environment, &mut cache)?.iter() {
                let document = self.resolve(document, &layer, project.as_ref(), &mut cache)?;
                let merged = match project {
                    Some(project) => merge(project, document),
                    None => document,
                };
                // Compose checks the ports after each file, also those that a later file removes.
                check_ports(&merged, &mut self.warnings)?;
                project = Some(merged);
            }
        }
        project.ok_or_else(|| ComposeError::of_file(first, "is empty: it has no services"))
    }

    /// Reads the named files of variables, or else `.env` of the folder.
    fn environment(
        &mut self,
        folder: &Path,
        environment: &Rc<Environment>,
        env_files: Option<&[PathBuf]>,
    ) -> Result<Rc<Environment>, ComposeError> {
        let default = folder.join(".env");
        let files = match env_files {
            Some(files) => files.to_vec(),
            None if default.is_file() => vec![default],
            None => Vec::new(),
        };
        let mut read = Environment::behind(environment);
        for file in &files {
            let source = self.read(file)?;
            read.read(&source.text)
                .map_err(|(line, problem)| ComposeError {
                    line: Some(line),
                    ..ComposeError::of_file(file, problem)
                })?;
        }
        Ok(Rc::new(read))
    }

    fn read(&mut self, file: &Path) -> Result<Arc<SourceFile>, ComposeError> {
        self.files += 1;
        if self.files > MAX_FILES {
            let problem = format!("is one file too many: a project reads at most {MAX_FILES}");
            return Err(ComposeError::of_file(file, problem));
        }
        let location = location(file);
        if let Some(source) = self.sources.get(&location) {
            return Ok(Arc::clone(source));
        }
        let source = SourceFile::read(file)?;
        self.sources.insert(location, Arc::clone(&source));
        Ok(source)
    }

    /// The documents of a file, with variables replaced.
    fn documents(
        &mut self,
        file: &Path,
        environment: &Environment,
        cache: &mut Cache,
    ) -> Result<Rc<Vec<Node>>, ComposeError> {
        let location = location(file);
        if let Some(documents) = cache.get(&location) {
            return Ok(Rc::clone(documents));
        }
        let source = self.read(file)?;
        let mut documents = yaml::parse(&source, &mut self.budget)?;
        for document in &mut documents {
            if document.mapping().is_none() {
                return Err(document
                    .place
                    .error("a compose file is a mapping, with services: at its beginning"));
            }
            self.put_in(document, environment)?;
        }
        let documents = Rc::new(documents);
        cache.insert(location, Rc::clone(&documents));
        Ok(documents)
    }

    fn put_in(&mut self, node: &mut Node, environment: &Environment) -> Result<(), ComposeError> {
        // Compose takes it away first.
        if node.is_reset() {
            return Ok(());
        }
        match &mut node.value {
            Value::Null => {}
            Value::Scalar(scalar) => {
                let found = interpolate(&scalar.text, &|name| environment.get(name));
                if let Some((text, reference)) = found.map_err(|text| node.place.error(text))? {
                    scalar.text = text;
                    scalar.reference = Some(Box::new(reference));
                    let size = node.size();
                    self.budget.spend(size, &node.place)?;
                }
            }
            Value::Sequence(items) => {
                for item in items {
                    self.put_in(item, environment)?;
                }
            }
            Value::Mapping(mapping) => {
                for entry in mapping.values_mut() {
                    self.put_in(&mut entry.node, environment)?;
                }
            }
        }
        Ok(())
    }

    /// Resolves `extends` and `include` of a document. `below`: the project of the files before it.
    fn resolve(
        &mut self,
        document: &Node,
        layer: &Layer<'_>,
        below: Option<&Node>,
        cache: &mut Cache,
    ) -> Result<Node, ComposeError> {
        let mut resolved = document.clone();
        if let Some(services) = document.get("services") {
            let mut extended = services.clone();
            if let Value::Mapping(mapping) = &mut extended.value {
                for (name, entry) in mapping.iter_mut() {
                    let mut chain = Vec::new();
                    let home = Home {
                        services,
                        below: below.and_then(|below| below.get("services")),
                    };
                    entry.node = self.extend(name, &home, layer, &mut chain, cache)?;
                }
            }
            if let Value::Mapping(mapping) = &mut resolved.value
                && let Some(entry) = mapping.get_mut("services")
            {
                entry.node = extended;
            }
        }
        for inclusion in inclusions(document)? {
            let included = self.include(&inclusion, layer)?;
            resolved = import(resolved, included)?;
        }
        Ok(resolved)
    }

    fn extend(
        &mut self,
        name: &str,
        home: &Home<'_>,
        layer: &Layer<'_>,
        chain: &mut Vec<(PathBuf, String)>,
        cache: &mut Cache,
    ) -> Result<Node, ComposeError> {
        let Some(entry) = home.get(name) else {
            return Err(home
                .services
                .place
                .error(format!("there is no service \"{name}\"")));
        };
        let Some(extends) = entry.node.get("extends") else {
            return Ok(entry.node.clone());
        };
        let here = &extends.place.source.path;
        let link = (here.clone(), name.to_owned());
        if chain.contains(&link) {
            let problem = format!("extends goes in a circle: \"{name}\" extends itself");
            return Err(extends.place.error(problem));
        }
        chain.push(link);
        if chain.len() > MAX_CHAIN {
            let problem = format!("extends more than {MAX_CHAIN} services, one after the other");
            return Err(extends.place.error(problem));
        }
        let (file, base) = extension(extends)?;
        let base = match file {
            None => self.base(&base, home, extends, layer, chain, cache)?,
            Some(file) if is_remote(&file) => {
                self.warn(
                    &extends.place,
                    format!("{file} is not on this machine and was not read"),
                );
                return Ok(entry.node.clone());
            }
            Some(file) => {
                let file = beside(folder_of(here), &file);
                let documents = self
                    .documents(&file, &layer.environment, cache)
                    .map_err(|error| elsewhere(error, &file, &extends.place))?;
                let mut services = documents
                    .iter()
                    .filter_map(|document| document.get("services"));
                let Some(services) = services.find(|services| services.entry(&base).is_some())
                else {
                    return Err(extends.place.error(format!(
                        "extends \"{base}\", and {} has no such service",
                        file.display()
                    )));
                };
                let home = Home {
                    services,
                    below: None,
                };
                self.base(&base, &home, extends, layer, chain, cache)?
            }
        };
        self.budget
            .spend(base.size() + entry.node.size(), &extends.place)?;
        let mut extended = merge(base, entry.node.clone());
        if let Value::Mapping(mapping) = &mut extended.value {
            mapping.shift_remove("extends");
        }
        // A finding about a missing key is placed at the service itself, not at its base.
        extended.place = entry.node.place.clone();
        extended.in_flow = entry.node.in_flow;
        Ok(extended)
    }

    fn base(
        &mut self,
        name: &str,
        home: &Home<'_>,
        extends: &Node,
        layer: &Layer<'_>,
        chain: &mut Vec<(PathBuf, String)>,
        cache: &mut Cache,
    ) -> Result<Node, ComposeError> {
        if home.get(name).is_none() {
            let problem = format!("extends \"{name}\", and there is no such service");
            return Err(extends.place.error(problem));
        }
        self.extend(name, home, layer, chain, cache)
    }

    fn include(&mut self, inclusion: &Inclusion, layer: &Layer<'_>) -> Result<Node, ComposeError> {
        let Inclusion {
            place,
            paths,
            folder,
            env_files,
        } = inclusion;
        if let Some(path) = paths.iter().find(|path| is_remote(path)) {
            self.warn(
                place,
                format!("{path} is not on this machine and was not read"),
            );
            return Ok(Node::null(place.clone()));
        }
        if layer.chain.len() > MAX_CHAIN {
            let problem = format!("includes more than {MAX_CHAIN} files, one in the other");
            return Err(place.error(problem));
        }
        let base = folder_of(&place.source.path);
        let paths: Vec<PathBuf> = paths.iter().map(|path| beside(base, path)).collect();
        if let Some(path) = paths
            .iter()
            .find(|path| layer.chain.contains(&identity(path)))
        {
            let problem = format!(
                "include goes in a circle: {} includes itself",
                path.display()
            );
            return Err(place.error(problem));
        }
        let folder = folder.as_ref().map(|folder| base.join(folder));
        let env_files: Option<Vec<PathBuf>> = env_files
            .as_ref()
            .map(|files| files.iter().map(|file| base.join(file)).collect());
        let first = paths.first().cloned().unwrap_or_default();
        self.layer(
            &paths,
            folder.as_deref(),
            &layer.environment,
            env_files.as_deref(),
            layer.chain,
        )
        .map_err(|error| elsewhere(error, &first, place))
    }

    fn warn(&mut self, place: &Place, problem: String) {
        self.warnings.push(ComposeWarning::at(place, problem));
    }
}

/// Where `extends` looks for the services of its own file.
struct Home<'a> {
    services: &'a Node,
    below: Option<&'a Node>,
}

impl<'a> Home<'a> {
    fn get(&self, name: &str) -> Option<&'a MappingEntry> {
        let Self { services, below } = self;
        let here = services.mapping().and_then(|mapping| mapping.get(name));
        here.or_else(|| below.as_ref()?.entry(name))
    }
}

/// Moves the error of a file that cannot be read to the line that names the file.
fn elsewhere(error: ComposeError, file: &Path, place: &Place) -> ComposeError {
    if error.line.is_none() && error.file == file.display().to_string() {
        place.error(format!("{}: {}", error.file, error.problem))
    } else {
        error
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) => parent,
        None => Path::new(""),
    }
}

/// A path that a file names, without `..` and `.`: Compose removes them before it opens the file.
fn beside(folder: &Path, path: &str) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in folder.join(path).components() {
        match (component, cleaned.components().next_back()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                cleaned.pop();
            }
            (component, _) => cleaned.push(component),
        }
    }
    cleaned
}

/// The same path for all spellings of a path. Links are not followed: paths in a file are relative to the folder of
/// its name.
fn location(file: &Path) -> PathBuf {
    if file == Path::new(STANDARD_INPUT) {
        return file.to_owned();
    }
    let folder = match folder_of(file) {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    match (folder.canonicalize(), file.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

/// The same path for all names of a file, if it exists.
fn identity(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| file.to_owned())
}

fn is_remote(path: &str) -> bool {
    path.contains("://") || path.starts_with("git@") || path.starts_with("github.com/")
}

/// `extends: base`, or `service` and `file`.
fn extension(extends: &Node) -> Result<(Option<String>, String), ComposeError> {
    let text = |node: &Node| node.scalar().map(|scalar| scalar.text.clone());
    let service = extends.get("service").and_then(text);
    let file = extends.get("file").and_then(text);
    match text(extends).or(service) {
        Some(service) => Ok((file, service)),
        None => Err(extends
            .place
            .error("extends names no service: write service: and a name")),
    }
}

struct Inclusion {
    place: Place,
    paths: Vec<String>,
    folder: Option<String>,
    env_files: Option<Vec<String>>,
}

fn inclusions(document: &Node) -> Result<Vec<Inclusion>, ComposeError> {
    let Some(include) = document.get("include") else {
        return Ok(Vec::new());
    };
    let wrong = |node: &Node| {
        let problem = "include takes a list of files, or of mappings with path:";
        node.place.error(problem)
    };
    let items = include.sequence().ok_or_else(|| wrong(include))?;
    let inclusion = |item: &Node| {
        let texts = |key: &str| item.get(key).map(texts);
        let paths = match item.scalar() {
            Some(scalar) => Some(vec![scalar.text.clone()]),
            None => texts("path"),
        };
        Ok(Inclusion {
            place: item.place.clone(),
            paths: paths
                .filter(|paths| !paths.is_empty())
                .ok_or_else(|| wrong(item))?,
            folder: texts("project_directory").and_then(|texts| texts.into_iter().next()),
            env_files: texts("env_file"),
        })
    };
    items.iter().map(inclusion).collect()
}

/// The texts of a list, or the one text of a scalar.
pub fn texts(node: &Node) -> Vec<String> {
    let nodes = node.sequence().unwrap_or(std::slice::from_ref(node));
    let scalars = nodes.iter().filter_map(Node::scalar);
    scalars.map(|scalar| scalar.text.clone()).collect()
}

/// Adds an included project. A service that both define is an error.
fn import(mut project: Node, included: Node) -> Result<Node, ComposeError> {
    let (Value::Mapping(into), Value::Mapping(from)) = (&mut project.value, included.value) else {
        return Ok(project);
    };
    for section in ["services", "networks", "volumes"] {
        let Some(MappingEntry { key, node }) = from.get(section) else {
            continue;
        };
        let empty = || MappingEntry {
            key: key.clone(),
            node: Node {
                value: Value::Mapping(Mapping::new()),
                ..node.clone()
            },
        };
        let target = into.entry(section.to_owned()).or_insert_with(empty);
        if !matches!(target.node.value, Value::Mapping(_)) {
            target.node = empty().node;
        }
        let (Value::Mapping(target), Value::Mapping(from)) = (&mut target.node.value, &node.value)
        else {
            continue;
        };
        for (name, entry) in from {
            if let Some(other) = target.get(name).filter(|_| section == "services") {
                let (file, line) = (entry.key.source.name(), entry.key.line());
                let problem = format!(
                    "\"{name}\" is also a service of {file}, line {line}, which is included"
                );
                return Err(other.key.error(problem));
            }
            target.insert(name.clone(), entry.clone());
        }
    }
    Ok(project)
}
