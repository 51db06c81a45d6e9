/*
 * What Nextflow knows of a run: run.json for the report, and the message at the end.
 */
include { default_of ; rules_of } from './checks'
include { write_whole } from './files'
include { message_of ; tasks_of } from './trace'

// Processes that have a GPU for themselves where there is one: those of the label process_gpu, which the trace does not tell.
def gpu_processes() {
    return ['PREFLIGHT', 'TEACH', 'TRAIN', 'SEGMENT', 'COMPARATOR_TILES']
}

// What each stage took: `stage`, `tasks`, `seconds` of all its tasks, `longest_seconds`, `peak_memory_bytes`; `cpu_hours`, `gpu_hours`, `memory_gb_hours`: what it asked for, times seconds;
// `containers`: names of its images, none where programs are those of the machine. In the order of their start.
def resources_of(tasks, gpu, containers) {
    def done = tasks.findAll { task -> task.status in ['COMPLETED', 'CACHED', 'FAILED'] && task.realtime != '-' }
    return done.groupBy { task -> task.process.tokenize(':').last().toLowerCase() }.collect { stage, mine ->
        def seconds = mine.collect { task -> nextflow.util.Duration.of(task.realtime).toMillis() / 1000 }
        def memory = mine.findAll { task -> !(task.peak_rss in ['-', '0']) }.collect { task -> nextflow.util.MemoryUnit.of(task.peak_rss).toBytes() }
        def cpu = [seconds, mine].transpose().collect { time, task -> time * (task.cpus as int) / 3600 }
        def asked = [seconds, mine].transpose().findAll { time, task -> task.memory != '-' }.collect { time, task -> time * nextflow.util.MemoryUnit.of(task.memory).toBytes() / 1e9 / 3600 }
        [
            stage: stage,
            tasks: mine.size(),
            seconds: seconds.sum(),
            longest_seconds: seconds.max(),
            cpu_hours: cpu.sum(),
            gpu_hours: gpu && stage.toUpperCase() in gpu_processes() ? seconds.sum() / 3600 : 0,
            memory_gb_hours: asked ? asked.sum() : null,
            peak_memory_bytes: memory ? memory.max() : null,
            containers: containers ? mine.collect { task -> task.container }.findAll { name -> name && name != '-' }.unique().sort() : [],
        ]
    }
}

// Tasks that failed for good: `sample`, `stage`, `segmentation`, `message`, `workdir`, `exit`. A task that succeeded on a later attempt is none.
def failures_of(tasks) {
    def done = tasks.findAll { task -> task.status in ['COMPLETED', 'CACHED'] }.collect { task -> task.name } as Set
    def last = tasks.findAll { task -> task.status == 'FAILED' && !(task.name in done) }.groupBy { task -> task.name }.values().collect { attempts -> attempts.max { task -> task.attempt as int } }
    return last.collect { task ->
        def stage = task.process.tokenize(':').last().toLowerCase()
        [sample: task.tag.tokenize(' ')[0], stage: stage, segmentation: segmentation_of(task), name: task.name, message: message_of(task), workdir: task.workdir, exit: task.exit]
    }
}

// Name of the one segmentation that a task works for, else null: all tasks of COMPARATORS have it in their tag, after the sample.
def segmentation_of(task) {
    def parts = task.process.tokenize(':')
    return parts.last() in ['ASSIGN', 'ASSESS'] || 'COMPARATORS' in parts ? task.tag.tokenize(' ')[1] : null
}

def run_record(samples, settings, schema, versions, trace) {
    def tasks = tasks_of(trace)
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
                failures: failures_of(tasks).collect { failure -> failure.subMap('sample', 'stage', 'message') + (failure.segmentation ? [segmentation: failure.segmentation] : [:]) },
                resources: resources_of(tasks, settings.gpu, workflow.containerEngine),
                container_engine: workflow.containerEngine,
            ]
        )
    )
}

// Written by this run and not by an earlier one into the same folder.
def this_run(path, run) {
    return path.exists() && path.lastModified() >= run.start.toInstant().toEpochMilli()
}

// What the report says should be looked at: a line for each sample, with the checks that are beyond their limits.
def to_look_at(report_json) {
    def report = new groovy.json.JsonSlurper().parse(report_json)
    return (report.samples ?: []).findAll { sample -> sample.verdict in ['look', 'fail'] }.collect { sample ->
        def beyond = (sample.checks ?: []).findAll { check -> check.verdict in ['look', 'fail'] }.toSorted { check -> check.verdict == 'fail' ? 0 : 1 }
        def named = beyond.take(4).collect { check -> "${check.name}${check.verdict == 'fail' ? ' (fail)' : ''}" }
        def more = beyond.size() > 4 ? ["${beyond.size() - 4} more"] : []
        "  ${sample.sample}: ${sample.failure ? 'a task failed' : (named + more).join(', ') ?: 'a comparator failed'}"
    }
}

// FAILED.txt in the folder of each sample that failed: files of an earlier run may lie beside it, and nothing is deleted that somebody may need. It goes when the sample is whole again.
def mark_failed(names, run, outdir, failures) {
    if (failures.any { failure -> failure.stage == 'preflight' }) {
        return
    }
    names.each { name ->
        def mine = failures.findAll { failure -> failure.sample in [name, 'cohort'] && !failure.segmentation }
        def mark = file("${outdir}/${name}/FAILED.txt", glob: false)
        if (mine && mark.parent.exists()) {
            def told = mine.collect { failure -> "${failure.stage}: ${failure.message}" }.join('\n')
            write_whole(mark, "This sample failed in the run ${run.runName}, started ${run.start}. Files here that are older than that are of an earlier run.\n\n${told}\n")
        }
        else if (!mine && (run.success || failures)) {
            mark.delete()
        }
    }
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
    def words = this_run(report, run) ? ["Report: ${report}"] : ['No report was written.']
    def look = this_run(report, run) ? to_look_at(report.resolveSibling('report.json')) : []
    words += look ? ['Look at (the report tells more; `istseg explain NAME` says what a check means):'] + look : []
    if (failures) {
        words += ["${failures.size()} ${failures.size() == 1 ? 'task' : 'tasks'} failed; the samples concerned are marked in the report, the others are complete:"] + told
    }
    else if (!run.success) {
        words += ["${run.errorMessage ?: 'No task failed: results could not be published.'} More in .nextflow.log."]
    }
    return (["${run.success && !failures ? 'Done' : 'Ended with failures'} after ${run.duration}."] + words).join('\n')
}
