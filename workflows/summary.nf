/*
 * What Nextflow knows of a run: run.json for the report, and the message at the end.
 */
include { default_of ; rules_of } from './checks'

// Tasks that failed for good: `sample`, `stage`, `message`, `workdir`, `exit`. A task that succeeded on a later attempt is none.
def failures_of(trace) {
    if (!trace.exists()) {
        return []
    }
    def lines = trace.readLines().collect { line -> line.split('\t', -1) as List }
    def tasks = lines.tail().collect { values -> [lines[0], values].transpose().collectEntries { pair -> pair } }
    def done = tasks.findAll { task -> task.status in ['COMPLETED', 'CACHED'] }.collect { task -> task.name } as Set
    def last = tasks.findAll { task -> task.status == 'FAILED' && !(task.name in done) }.groupBy { task -> task.name }.values().collect { attempts -> attempts.max { task -> task.attempt as int } }
    return last.collect { task ->
        [sample: task.tag.tokenize(' ')[0], stage: task.process.tokenize(':').last().toLowerCase(), name: task.name, message: message_of(task), workdir: task.workdir, exit: task.exit]
    }
}

// The ERROR lines of a task, else its last lines.
def message_of(task) {
    def log = file("${task.workdir}/.command.err", glob: false)
    def lines = log.exists() ? log.readLines().findAll { line -> line.trim() } : []
    def errors = lines.findAll { line -> line.startsWith('ERROR: ') }.collect { line -> line.substring(7) }
    if (errors) {
        return errors.join('\n')
    }
    def known = ['137': 'it ran out of memory', '140': 'it ran out of time', '127': 'the command istseg was not found']
    def ended = "ended with exit status ${task.exit}${known[task.exit] ? " (${known[task.exit]})" : ''}"
    return ([ended] + lines.takeRight(3)).join('\n')
}

def run_record(samples, settings, schema, versions, failures) {
    def defaults = rules_of(schema).collectEntries { name, rule -> [name, default_of(rule)] }
    return groovy.json.JsonOutput.prettyPrint(
        groovy.json.JsonOutput.toJson(
            [
                name: workflow.runName,
                command: workflow.commandLine,
                started: workflow.start.toString(),
                nextflow: workflow.nextflow.version.toString(),
                profile: workflow.profile,
                pipeline_version: workflow.manifest.version,
                samples: samples.collect { meta, raw -> [sample: meta.id, platform: meta.platform, path: raw.toUriString()] },
                params: settings,
                changed: settings.findAll { name, value -> value != defaults[name] && value.toString() != defaults[name].toString() }.keySet() as List,
                versions: versions.collectEntries { process, tool, version -> [tool, version] } + [nextflow: workflow.nextflow.version.toString()],
                defaults: defaults.findAll { name, value -> value != null },
                failures: failures.collect { failure -> [sample: failure.sample, stage: failure.stage, message: failure.message] },
            ]
        )
    )
}

// Text at the end of a run.
def closing_words(run, outdir, failures) {
    def report = file("${outdir}/report.html", glob: false)
    def told = failures.collect { failure ->
        "  ${failure.name}:\n${failure.message.readLines().collect { line -> "    ${line}" }.join('\n')}\n    work folder: ${failure.workdir}"
    }
    if (failures.any { failure -> failure.stage == 'preflight' }) {
        return "Nothing was run: preflight found problems.\n${told.join('\n')}"
    }
    // A page of an earlier run must not be taken for this one's.
    def words = report.exists() && report.lastModified() >= run.start.toInstant().toEpochMilli() ? ["Report: ${report}"] : ['No report was written.']
    if (failures) {
        words += ["${failures.size()} ${failures.size() == 1 ? 'task' : 'tasks'} failed; the samples concerned are marked in the report, the others are complete:"] + told
    }
    else if (!run.success) {
        words += ["${run.errorMessage ?: 'No task failed: results could not be published.'} More in .nextflow.log."]
    }
    return (["${run.success && !failures ? 'Done' : 'Ended with failures'} after ${run.duration}."] + words).join('\n')
}
