/*
 * What a run leaves behind so that others can take its results up: outputs.json (what each file is), checksums.sha256, the run as an RO-Crate, its parameters and versions.
 * Written when everything is published; of the files of an output folder those that assets/outputs.json knows are listed.
 */
include { pretty ; write_whole } from './files'

// Kinds of results with the regular expression of their paths; those of one segmentation last, because `<sample>/<segmentation>/` stands for many folders.
def kinds_of(outputs) {
    def kinds = outputs.collectMany { kind -> kind.paths.collect { path -> kind + [path: path, pattern: pattern_of(path)] } }
    return kinds.toSorted { kind -> kind.path.contains('<segmentation>') ? 1 : 0 }
}

def pattern_of(path) {
    // Marks become groups of the expression, every other character stands for itself.
    def marks = ['<sample>': '(?<sample>[^/]+)', '<segmentation>': '(?<segmentation>(?!(?:exports|qc|model|coexpression)/)[a-z]+)', '{': '(?:', '}': ')', ',': '|', '*': '[^/]*', '.': '\\.']
    def seen = [] as Set
    def parts = (path =~ /<sample>|<segmentation>|[^<]|</).collect { part -> part }
    def text = parts.collect { part ->
        def again = part in seen
        seen << part
        part == '<sample>' && again ? '\\k<sample>' : marks.getOrDefault(part, part)
    }.join('')
    return text.endsWith('/') || path.endsWith('.zarr') ? "${text.replaceFirst('/$', '')}/.+" : text.replace('/)', '/.+)').replace('/|', '/.+|')
}

def sha256_of(path) {
    def digest = java.security.MessageDigest.getInstance('SHA-256')
    path.eachByte(1 << 20) { buffer, n -> digest.update(buffer, 0, n) }
    return digest.digest().encodeHex().toString()
}

// Files of a folder and of some folders in it, as [path relative to it, file], sorted. Others are not entered: the work folder may lie there too.
def files_below(outdir, folders) {
    def found = []
    outdir.eachFile { path ->
        if (!path.isDirectory()) {
            found << path
        }
        else if (path.name in folders) {
            path.eachFileRecurse(groovy.io.FileType.FILES) { inner -> found << inner }
        }
    }
    return found.collect { path -> [outdir.relativize(path).toString(), path] }.toSorted { a, b -> a[0] <=> b[0] }
}

def described(relative, kinds) {
    def kind = kinds.find { one -> relative ==~ one.pattern }
    if (!kind) {
        return null
    }
    def match = relative =~ kind.pattern
    match.matches()
    def named = ['sample', 'segmentation'].findAll { name -> kind.path.contains("<${name}>") }.collectEntries { name -> [name, match.group(name)] }
    return [path: relative, what: kind.what.replaceAll(/\[(.+?)\]\(.+?\)/, '$1').replaceAll(/[*`]/, ''), stage: kind.stage] + named
}

// Stores (.zarr) are one result of many files: their checksum is that of the lines of their files in checksums.sha256.
def collected(entries) {
    return entries.groupBy { entry -> entry.path.contains('.zarr/') ? entry.path.split('\\.zarr/')[0] + '.zarr' : entry.path }.collect { path, parts ->
        if (parts.size() == 1 && parts[0].path == path) {
            return parts[0]
        }
        def sums = parts[0].sha256 ? [sha256: java.security.MessageDigest.getInstance('SHA-256').digest(checksum_lines(parts).getBytes('UTF-8')).encodeHex().toString()] : [:]
        return parts[0] + [path: path, bytes: parts.collect { part -> part.bytes }.sum(), files: parts.size()] + sums
    }
}

def checksum_lines(entries) {
    return entries.findAll { entry -> entry.sha256 }.collect { entry -> "${entry.sha256}  ${entry.path}\n" }.join('')
}

def refer(entities) {
    return entities.collect { entity -> ['@id': entity['@id']] }
}

// Process Run Crate 0.5 (https://w3id.org/ro/wfrun/process): the run as an action, samples as its objects, results as what it made.
def crate(record, results, run) {
    def kinds = ['.json': 'application/json', '.html': 'text/html', '.tsv': 'text/tab-separated-values', '.csv': 'text/csv', '.png': 'image/png', '.h5ad': 'application/x-hdf5', '.tif': 'image/tiff', '.geojson': 'application/geo+json', '.parquet': 'application/vnd.apache.parquet', '.yml': 'application/yaml']
    def files = results.collect { entry ->
        def type = kinds.find { end, name -> entry.path.endsWith(end) }?.value
        ['@id': entry.files ? "${entry.path}/".toString() : entry.path, '@type': entry.files ? 'Dataset' : 'File', name: entry.path, description: entry.what] + (entry.files ? [:] : [contentSize: entry.bytes.toString()]) + (type && !entry.files ? [encodingFormat: type] : [:]) + (entry.sha256 && !entry.files ? [sha256: entry.sha256] : [:])
    }
    def inputs = record.samples.collect { sample -> ['@id': "#sample-${sample.sample}", '@type': 'Dataset', name: sample.sample, description: "raw ${sample.platform} folder", url: sample.path] }
    def settings = record.params.findAll { name, value -> value != null }.collect { name, value -> ['@id': "#param-${name}", '@type': 'PropertyValue', name: name, value: value.toString()] }
    def programs = record.versions.findAll { tool, version -> tool != 'istseg' }.collect { tool, version -> ['@id': "#program-${tool}", '@type': 'SoftwareApplication', name: tool, softwareVersion: version.toString()] }
    def action = [
        '@id': "#run-${record.name}", '@type': 'CreateAction', name: "istseg, run ${record.name}", instrument: ['@id': '#istseg'], startTime: run.start.toString(), endTime: run.complete.toString(),
        actionStatus: ['@id': run.success ? 'http://schema.org/CompletedActionStatus' : 'http://schema.org/FailedActionStatus'], description: record.command,
        object: refer(inputs + settings), result: refer(files),
    ]
    def root = [
        '@id': './', '@type': 'Dataset', name: "istseg results of ${record.samples.collect { sample -> sample.sample }.join(', ')}",
        description: 'Cells, counts and report of a run of istseg', datePublished: run.complete.toString(), license: 'not stated',
        conformsTo: [['@id': 'https://w3id.org/ro/wfrun/process/0.5']], hasPart: refer(files), mentions: [['@id': action['@id']]],
    ]
    def profile = ['@id': 'https://w3id.org/ro/wfrun/process/0.5', '@type': 'CreativeWork', name: 'Process Run Crate', version: '0.5']
    def descriptor = ['@id': 'ro-crate-metadata.json', '@type': 'CreativeWork', about: ['@id': './'], conformsTo: ['@id': 'https://w3id.org/ro/crate/1.1']]
    def istseg = ['@id': '#istseg', '@type': 'SoftwareApplication', name: 'istseg', softwareVersion: record.pipeline_version, softwareRequirements: refer(programs)]
    return ['@context': 'https://w3id.org/ro/crate/1.1/context', '@graph': [descriptor, root, profile, istseg, action] + programs + inputs + settings + files]
}

// Write all of it; `run_json` is what the report was made from. `with_sums`: read every result once more for its checksum.
def write_manifest(outdir, run_json, outputs, run, with_sums) {
    def record = new groovy.json.JsonSlurper().parse(run_json)
    def info = run_json.parent
    write_whole(info.resolve('params.json'), pretty(record.params.findAll { name, value -> value != null && !(name in ['help', 'validate_params']) }))
    write_whole(info.resolve('software_versions.yml'), (['istseg:'] + record.versions.collect { tool, version -> "  ${tool}: \"${version}\"" }).join('\n') + '\n')

    def kinds = kinds_of(outputs)
    // The files about the others; and Nextflow's own, which it finishes after this.
    def left_out = ['outputs.json', 'checksums.sha256', 'ro-crate-metadata.json'] + ['trace.tsv', 'execution.html', 'timeline.html', 'dag.html'].collect { name -> "pipeline_info/${name}".toString() }
    def entries = files_below(outdir, record.samples.collect { sample -> sample.sample } + ['cohort', 'pipeline_info']).findAll { relative, path -> !(relative in left_out) }.collectMany { relative, path ->
        def entry = described(relative, kinds)
        entry ? [entry + [bytes: path.size()] + (with_sums ? [sha256: sha256_of(path)] : [:])] : []
    }
    def results = collected(entries)
    write_whole(outdir.resolve('checksums.sha256'), checksum_lines(entries))
    write_whole(outdir.resolve('outputs.json'), pretty([pipeline: 'istseg', version: record.pipeline_version, run: record.name, started: run.start.toString(), ended: run.complete.toString(), success: run.success, files: results]))
    write_whole(outdir.resolve('ro-crate-metadata.json'), pretty(crate(record, results, run)))
}
