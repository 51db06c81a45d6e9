/*
 * The canary: what a site must be able to do, tried one by one, and a table of the answers.
 */
include { CANARY_START ; CANARY_BIN ; CANARY_STAGE ; CANARY_SHARE ; CANARY_SCRATCH ; CANARY_RETRY ; CANARY_GPU ; CANARY_PUBLISH } from '../modules/canary/main'
include { message_of ; tasks_of } from './trace'

workflow CANARY {
    main:
    CANARY_START()
    CANARY_BIN()
    CANARY_STAGE(channel.fromPath("${projectDir}/assets/canary", type: 'dir'))
    CANARY_SHARE(CANARY_STAGE.out.folder)
    CANARY_SCRATCH()
    CANARY_RETRY()
    CANARY_PUBLISH()
    if (params.gpu) {
        CANARY_GPU()
    }
}

// What is tried, in words, and what to do when it fails.
def canary_checks() {
    def checks = [
        CANARY_START: ['a task starts, with this istseg', 'Are the images there (--container_registry, --container_tag), or the environment of `make setup` on a disk that the nodes see?'],
        CANARY_BIN: ['bin/ is on PATH', 'The folder of the pipeline must be visible on the nodes, and its scripts executable.'],
        CANARY_STAGE: ['a folder is staged in and handed out', 'Can the nodes see the pipeline folder and -work-dir, and may they write there?'],
        CANARY_SHARE: ['tasks read what others wrote', 'Put -work-dir on storage that all nodes share.'],
        CANARY_SCRATCH: ['temporary files have room', 'Set TMPDIR for tasks (env.TMPDIR in a configuration given with -c) to a folder with room.'],
        CANARY_RETRY: ['a task without memory is tried again', 'Does the scheduler let a task ask for more memory than at first? See --max_memory and the limits of the queue.'],
        CANARY_PUBLISH: ['results are published', 'Can the machine that runs Nextflow write to --outdir?'],
    ]
    return params.gpu ? checks + [CANARY_GPU: ['a GPU is there and works', 'See --gpu_queue, --gpu_type, --gpu_options; with containers the toolkit of NVIDIA on the nodes, and the image istseg-cuda.']] : checks
}

// The table at the end of a canary run.
def canary_table(trace, outdir) {
    def tasks = tasks_of(trace)
    def rows = canary_checks().collect { name, words ->
        def mine = tasks.findAll { task -> task.process.tokenize(':').last() == name }
        def done = mine.find { task -> task.status in ['COMPLETED', 'CACHED'] }
        def published = name != 'CANARY_PUBLISH' || file("${outdir}/canary.txt", glob: false).exists()
        def seen = done ? (published ? last_words(done) : 'the task ran, its file did not come') : mine ? why(mine.max { task -> task.attempt as int }) : 'did not run'
        [ok: done && published, words: words, seen: seen]
    }
    def lines = rows.collectMany { row ->
        ["  ${row.ok ? 'ok    ' : 'NOT OK'}  ${row.words[0].padRight(38)}  ${row.ok ? row.seen : ''}".stripTrailing()] + (row.ok ? [] : row.seen.readLines().collect { line -> "            ${line}" } + ["            -> ${row.words[1]}"])
    }
    def bad = rows.count { row -> !row.ok }
    return (['What this site can do:'] + lines + [bad ? "${bad} of ${rows.size()} not ok." : 'All well: the pipeline can run here.']).join('\n')
}

// A check says on its output why it fails; what the shell or the scheduler says is with the errors.
def why(task) {
    return [last_words(task), message_of(task)].findAll { words -> words }.join('\n')
}

def last_words(task) {
    def log = file("${task.workdir}/.command.out", glob: false)
    def lines = log.exists() ? log.readLines().findAll { line -> line.trim() } : []
    return lines ? lines.last().trim() : ''
}
