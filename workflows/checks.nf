/*
 * Checks of parameters and samplesheet before the first task, by the two JSON schemas, without a plugin.
 * All problems are found at once; each says what is wrong, where, and what to do.
 */

// Closed subset of JSON schema: type, enum, pattern, minimum, maximum, exclusiveMinimum, `exists` for paths, and `items` for names in one text.
def check_value(value, rule, where, base) {
    if (rule.type == 'boolean') {
        return value instanceof Boolean ? [] : ["${where}: must be true or false, it is '${value}'."]
    }
    if (rule.type in ['integer', 'number']) {
        return check_number(value, rule, where)
    }
    if (value instanceof Boolean || value instanceof Map || value instanceof Collection) {
        return ["${where}: needs a value of text, it is ${value instanceof Boolean ? 'empty' : value}."]
    }
    def text = value.toString()
    if (rule['enum'] && !(text in rule['enum'])) {
        def near = nearest(text, rule['enum'])
        return ["${where}: '${text}' is none of ${rule['enum'].join(', ')}${near ? "; did you mean ${near}?" : '.'}"]
    }
    if (rule.items) {
        return check_list(text, rule, where)
    }
    if (rule.pattern && !(text ==~ rule.pattern) && !(text =~ rule.pattern)) {
        return ["${where}: '${text}' is not of the right form. ${rule.description}"]
    }
    return rule.exists && text != 'scratch' ? check_path(text, rule, where, base) : []
}

// A list of names in one text, separated by commas; `none` stands alone.
def check_list(text, rule, where) {
    def names = text.split(',', -1) as List
    if (names == ['none']) {
        return []
    }
    return names.unique().findAll { name -> !(name in rule.items['enum']) }.collect { name ->
        def near = nearest(name, rule.items['enum'])
        !name ? "${where}: '${text}' has an empty name; write names with one comma between them." : "${where}: '${name}' is none of ${rule.items['enum'].join(', ')}${near ? "; did you mean ${near}?" : '; `none` alone is for none.'}"
    }
}

def check_number(value, rule, where) {
    def right = rule.type == 'integer' ? (value instanceof Integer || value instanceof Long) : value instanceof Number
    if (!right) {
        return ["${where}: must be ${rule.type == 'integer' ? 'a whole number' : 'a number'}, it is '${value}'."]
    }
    def low = rule.minimum
    def high = rule.maximum
    if ((low != null && value < low) || (high != null && value > high)) {
        return ["${where}: must be ${low != null && high != null ? "between ${low} and ${high}" : low != null ? "at least ${low}" : "at most ${high}"}, it is ${value}."]
    }
    return []
}

def check_path(text, rule, where, base) {
    def path = null
    try {
        path = resolve(text, base)
    }
    catch (java.nio.file.InvalidPathException error) {
        return ["${where}: Java cannot read the name '${text}' in this locale; start Nextflow with LC_ALL=C.UTF-8."]
    }
    if (!path.exists()) {
        return ["${where}: there is no ${rule.format == 'directory-path' ? 'folder' : 'file'} '${path}'."]
    }
    if (rule.format == 'directory-path' && !path.isDirectory()) {
        return ["${where}: '${path}' is a file, a folder is needed."]
    }
    if (rule.format == 'file-path' && path.isDirectory()) {
        return ["${where}: '${path}' is a folder, a file is needed."]
    }
    return []
}

// Absolute paths and URLs as they are, others below `base`; no character of a path is a pattern.
def resolve(text, base) {
    return base && !(text ==~ /^(\/|[a-z0-9]+:\/\/).*/) ? file("${base.toUriString()}/${text}", glob: false) : file(text, glob: false)
}

def nearest(word, options) {
    // `closest` takes no empty word.
    def near = word ? options.closest(word.toString()) : null
    return near ? near[0] : null
}

def read_schema(path) {
    return new groovy.json.JsonSlurper().parseText(path.text)
}

// Name -> rule of all parameters.
def rules_of(schema) {
    return schema['$defs'].values().inject([:]) { all, group -> all + group.properties }
}

def default_of(rule) {
    return rule.default instanceof CharSequence ? rule.default.toString().replace('${projectDir}', "${projectDir}") : rule.default
}

// Parameters without the empty ones, as plain values. Nextflow reads `--z_planes 3` as a number: what the schema calls text becomes text.
def plain_params(given, schema) {
    def rules = rules_of(schema)
    return given.findAll { name, value -> value != null }.collectEntries { name, value ->
        [name, value instanceof Boolean || (value instanceof Number && rules[name]?.type != 'string') ? value : value.toString()]
    }
}

// Ends the run with all that is wrong; goes on where nothing is.
def refuse(problems) {
    if (problems) {
        error("${problems.size()} problem(s) found before the start, nothing was run:\n  - ${problems.join('\n  - ')}")
    }
}

// Files of a raw folder: path in it -> bytes and time of the last change; none of a folder in a cloud. Links to folders are not followed.
def raw_files_of(folder) {
    if (folder.scheme != 'file' || !folder.isDirectory()) {
        return [:]
    }
    def top = folder.toRealPath()
    def files = java.nio.file.Files.walk(top).filter { path -> !path.isDirectory() && path.exists() }.map { path -> [top.relativize(path).toString(), path] }.toList()
    return files.toSorted { a, b -> a[0] <=> b[0] }.collectEntries { name, path -> [name, [bytes: path.size(), modified: java.time.Instant.ofEpochMilli(path.lastModified()).toString()]] }
}

// Changes when a file changes; Nextflow itself looks at the folder only, and would resume from stale results.
def state_of(files) {
    return files ? files.collect { name, facts -> "${name} ${facts.bytes} ${facts.modified}" }.join('\n').md5() : ''
}

def raw_record(outdir, sample) {
    return file("${outdir}/${sample}/raw_files.json", glob: false)
}

// What changed in a raw folder since the results that lie in outdir; nothing where no such results are.
def changed_raw(sample, files, outdir) {
    def record = raw_record(outdir, sample)
    if (!files || !record.exists()) {
        return []
    }
    def before = new groovy.json.JsonSlurper().parse(record).files
    def told = (before.keySet() + files.keySet()).toSorted().collectMany { name ->
        def then = before[name]
        def now = files[name]
        if (!then || !now) {
            return ["${name} is ${now ? 'new' : 'gone'}"]
        }
        if (then.bytes as long != now.bytes as long) {
            return ["${name} has ${now.bytes} bytes, it had ${then.bytes}"]
        }
        return then.modified == now.modified ? [] : ["${name} was written to at ${now.modified}"]
    }
    if (!told) {
        return []
    }
    def words = told.take(3).join('; ') + (told.size() > 3 ? "; and ${told.size() - 3} more" : '')
    return ["${sample}: raw files are not those that the results in ${record.parent} were made from: ${words}. Give a new --outdir, or go on with --check_changed_raw false: the sample is then read and computed again."]
}

def check_params(given, schema) {
    def rules = rules_of(schema)
    def unknown = given.keySet().findAll { name -> !rules.containsKey(name) }
    def problems = unknown.collect { name ->
        // `--tile-um` reaches us as `tileUm`: the message shows what was typed.
        def hyphens = name.replaceAll(/([a-z0-9])([A-Z])/, '$1-$2').toLowerCase()
        def near = nearest(hyphens.replace('-', '_'), rules.keySet() as List)
        "--${workflow.commandLine.contains("--${hyphens}") ? hyphens : name}: there is no such parameter${near ? "; did you mean --${near}?" : '; --help lists them.'}"
    }
    problems += schema.required.findAll { name -> given[name] == null }.collect { name -> "--${name}: is missing. ${rules[name].description}" }
    problems += given.findAll { name, value -> rules.containsKey(name) && value != null }.collectMany { name, value -> check_value(value, rules[name], "--${name}", null) }
    return problems + check_together(given)
}

// What no single parameter says.
def check_together(given) {
    def problems = []
    if (given.teacher == 'cellpose' && !given.nuclei_weights) {
        problems += ['--nuclei_weights: the teacher cellpose needs it (a file; nothing is downloaded).']
    }
    if (given.teacher == 'cellpose' && !given.cyto_weights) {
        problems += ['--cyto_weights: the teacher cellpose needs it (a file; nothing is downloaded).']
    }
    if (given.base_model == 'scratch' && given.finetune == 'none') {
        problems += ['--base_model: `scratch` is an untrained network; add --finetune sample or cohort, or give weights.']
    }
    if (given.base_model != 'scratch' && given.backbone) {
        problems += ['--backbone: only an untrained network takes it, weights bring their own; leave it out or use --base_model scratch.']
    }
    if (given.base_model != 'scratch' && given.finetune == 'none' && given.rna_input) {
        problems += ['--rna_input: weights bring their own; leave it out, or add --finetune sample or cohort, which teaches them another.']
    }
    if (given.contain instanceof Number && given.intersect instanceof Number && given.intersect >= given.contain) {
        problems += ["--intersect: must be below --contain (${given.contain}), it is ${given.intersect}."]
    }
    problems += check_site(given)
    if (!workflow.containerEngine && !has_command()) {
        problems += ["istseg: is neither in ${projectDir}/.venv nor on PATH; run `make setup` in ${projectDir}, or use a profile with containers (docker, podman, apptainer, singularity)."]
    }
    return problems
}

// What the site's scheduler or cloud needs, and what it would silently leave out.
def check_site(given) {
    def executor = nextflow.Global.session.config.process.executor ?: 'local'
    def needed = [awsbatch: ['queue', 'aws_region'], azurebatch: ['queue', 'azure_location'], 'google-batch': ['google_project', 'google_location'], k8s: ['k8s_claim']]
    def understood = [
        qos: ['slurm'],
        account: ['slurm', 'lsf', 'sge', 'pbspro'],
        array_size: ['slurm', 'lsf', 'sge', 'pbspro', 'awsbatch', 'google-batch'],
        cluster_options: ['slurm', 'lsf', 'sge', 'pbspro'],
        gpu_options: ['slurm', 'lsf', 'sge', 'pbspro'],
    ]
    def roots = [awsbatch: 's3', azurebatch: 'az', 'google-batch': 'gs']
    def problems = (needed[executor] ?: []).findAll { name -> !given[name] }.collect { name -> "--${name}: ${executor} needs it." }
    problems += understood.findAll { name, executors -> given[name] && !(executor in executors) }.collect { name, executors ->
        "--${name}: the executor ${executor} does not understand it (${executors.join(', ')} do); leave it out or choose another profile."
    }
    if (roots[executor] && workflow.workDir.scheme != roots[executor]) {
        problems += ["-work-dir: ${executor} needs a folder in its storage (${roots[executor]}://...), it is ${workflow.workDir.toUriString()}."]
    }
    if (roots[executor] && given.container_registry?.toString()?.startsWith('localhost')) {
        problems += ["--container_registry: ${executor} cannot reach images of this machine (${given.container_registry}); push them to a registry that it can reach."]
    }
    if (given.container_registry?.toString()?.startsWith('/') && !(workflow.containerEngine in [null, 'apptainer', 'singularity'])) {
        problems += ["--container_registry: ${given.container_registry} is a folder with image files, which only apptainer and singularity take; ${workflow.containerEngine} needs a registry."]
    }
    return problems
}

def has_command() {
    return (["${projectDir}/.venv/bin"] + System.getenv('PATH').tokenize(':')).any { folder -> file("${folder}/istseg", glob: false).exists() }
}

// Rows of the samplesheet as maps without empty values, `path` as a file, `line` apart; and the problems.
def read_samplesheet(path, schema) {
    def rules = schema.items.properties
    def text = new String(path.bytes, 'UTF-8').replaceFirst('^\uFEFF', '')
    if (text.contains('\uFFFD') || text.contains('\u0000')) {
        return [[], ["${path}: is not text in UTF-8; save it as `CSV UTF-8`."]]
    }
    def lines = text.readLines().withIndex(1).findAll { line, number -> line.replaceAll(/[,\s"]/, '') }
    if (!lines) {
        return [[], ["${path}: is empty; it needs the header sample,platform,path and one line per sample."]]
    }
    def header = fields(lines[0][0])
    def problems = check_header(header, schema, path)
    if (problems) {
        return [[], problems]
    }
    if (lines.size() == 1) {
        return [[], ["${path}: has a header but no sample; add one line per sample."]]
    }
    def rows = lines.tail().collect { line, number -> [number: number, values: fields(line)] }
    def uneven = rows.findAll { row -> row.values.size() > header.size() }.collect { row ->
        "${path} line ${row.number}: has ${row.values.size()} values, the header has ${header.size()} columns; put a value that holds a comma into double quotes."
    }
    def samples = rows.collect { row -> [number: row.number, meta: typed([header, row.values].transpose().collectEntries { pair -> pair }.findAll { name, value -> value }, rules)] }
    def wrong = samples.collectMany { row -> check_row(row, schema, path) }
    return [samples.collect { row -> row.meta }, uneven + wrong + check_unique(samples, path)]
}

// One line of CSV; a value in double quotes may hold commas.
def fields(line) {
    return (line + ',').findAll(/(?:\s*"((?:[^"]|"")*)"\s*|([^,]*)),/) { all, quoted, bare -> (quoted != null ? quoted.replace('""', '"') : bare).trim() }
}

def check_header(header, schema, path) {
    def rules = schema.items.properties
    if (header.size() == 1 && header[0] =~ /[;\t]/) {
        return ["${path}: its columns are separated by ${header[0].contains(';') ? 'semicolons' : 'tabs'}; save it with commas."]
    }
    def unknown = header.findAll { name -> !rules.containsKey(name) }.collect { name ->
        def near = nearest(name, rules.keySet() as List)
        "${path}: there is no column '${name}'${near ? "; did you mean ${near}?" : "; columns are ${rules.keySet().join(', ')}."}"
    }
    def missing = schema.items.required.findAll { name -> !(name in header) }.collect { name -> "${path}: lacks the column ${name}. ${rules[name].description}" }
    def twice = header.countBy { name -> name }.findAll { name, n -> n > 1 }.collect { name, n -> "${path}: has the column '${name}' ${n} times." }
    return unknown + missing + twice
}

// Text of the file as the type of its column; what is no number stays text and is told by the check.
def typed(row, rules) {
    return row.collectEntries { name, value -> [name, rules[name].type == 'number' && value.isBigDecimal() ? value.toBigDecimal() : value] }
}

def check_row(row, schema, path) {
    def where = "${path} line ${row.number}"
    def missing = schema.items.required.findAll { name -> !row.meta[name] }.collect { name -> "${where}: has no ${name}. ${schema.items.properties[name].description}" }
    return missing + row.meta.collectMany { name, value -> check_value(value, schema.items.properties[name], "${where}, ${name}", path.parent) }
}

def check_unique(samples, path) {
    def named = samples.findAll { row -> row.meta.sample }.groupBy { row -> row.meta.sample.toLowerCase() }
    return named.values().findAll { rows -> rows.size() > 1 }.collect { rows ->
        "${path} lines ${rows*.number.join(', ')}: the sample name '${rows[0].meta.sample}' is there ${rows.size()} times (upper and lower case are the same); every sample needs its own."
    }
}

// The text of --help: parameters by group.
def help_text(schema) {
    def groups = schema['$defs'].values().collect { group ->
        def lines = group.properties.collect { name, rule ->
            def kind = rule['enum'] ? rule['enum'].join('|') : rule.type
            def usual = rule.default == null || rule.default == '' ? '' : " [${rule.default}]"
            "  --${name.padRight(22)} ${kind}${usual}\n      ${rule.description}"
        }
        "${group.title}\n${lines.join('\n')}"
    }
    def usage = "nextflow run . -profile <site> --input samplesheet.csv --outdir results [-params-file params.yaml] [-resume]"
    return "istseg ${workflow.manifest.version}: ${workflow.manifest.description}\n\n${usage}\n\n${groups.join('\n\n')}\n"
}
