/*
 * Batches of tiles put together again.
 */

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
