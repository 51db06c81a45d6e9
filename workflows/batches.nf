/*
 * Batches of tiles: how large they are, and how they are put together again.
 */

// Tiles of a task: as many as take so many minutes in the slower of teach and segment, by the estimates of conf/resources.config (on one core; with a GPU teach counts alone). Without
// a measured sample (stub runs) it is 4.
def tiles_of_a_task(size, minutes) {
    if (!size) {
        return 4
    }
    def estimates = (params.gpu ? ['TEACH'] : ['TEACH', 'SEGMENT']).collect { stage -> nextflow.Global.session.config.process["withName:${stage}".toString()].ext.seconds }
    def seconds = estimates.collect { terms -> terms.findAll { name, value -> name != 'start' }.collect { name, value -> value * size[name] }.sum() }.max()
    return Math.max(1, Math.round(minutes * 60 / seconds) as int)
}

// [meta, number, part(s)] of batches -> [meta, all parts], as soon as the last batch of a sample is there. A sample that lacks a batch gives nothing:
// half a sample must not look like a whole one.
def whole_samples(parts, sizes) {
    return parts
        .join(sizes, by: [0, 1])
        .map { meta, number, part, n -> [groupKey(meta, n), number, part] }
        .groupTuple()
        .map { key, numbers, batches -> [key.getGroupTarget(), in_order(numbers, batches)] }
}

// The same order in every run, so that -resume finds its tasks.
def in_order(numbers, batches) {
    return [numbers, batches].transpose().toSorted { pair -> pair[0] }.collectMany { pair -> pair[1] instanceof Collection ? pair[1] : [pair[1]] }
}
