/*
 * Nextflow's trace: its tasks, and what a failed one said. It includes nothing: the strict parser does not take a script with includes of its own that two others include.
 */

// Rows of the trace as maps; none without a trace.
def tasks_of(trace) {
    if (!trace.exists()) {
        return []
    }
    def lines = trace.readLines().collect { line -> line.split('\t', -1) as List }
    return lines.tail().collect { values -> [lines[0], values].transpose().collectEntries { pair -> pair } }
}

// The ERROR lines of a task, else its last lines.
def message_of(task) {
    def log = file("${task.workdir}/.command.err", glob: false)
    def lines = log.exists() ? log.readLines().findAll { line -> line.trim() } : []
    def errors = lines.findAll { line -> line.startsWith('ERROR: ') }.collect { line -> line.substring(7) }
    if (errors) {
        return errors.join('\n')
    }
    def known = ['137': 'it ran out of memory', '140': 'it ran out of time', '127': 'a command was not found']
    def ended = "ended with exit status ${task.exit}${known[task.exit] ? " (${known[task.exit]})" : ''}"
    return ([ended] + lines.takeRight(3)).join('\n')
}
