/*
 * CURATE: keep what nuclei and RNA density confirm; write training patches when there is to be training.
 *
 * in   sample; number of the batch; its tile folders; the teacher's labels of these tiles; thresholds.json
 * out  curation.json (counts by rule); folder of patches, empty when none were asked for or found
 */
process CURATE {
    tag "${meta.id} ${batch}"
    label 'process_low'
    ext size: { meta.size }, tiles: { tiles.size() }

    input:
    tuple val(meta), val(batch), path(tiles, stageAs: 'input/tiles/*', arity: '1..*'), path(labels, stageAs: 'input/labels/*', arity: '1..*'), path(thresholds, stageAs: 'input/thresholds.json')

    output:
    tuple val(meta), val(batch), path('curated/curation.json'), emit: counts
    tuple val(meta), val(batch), path('curated/patches'), emit: patches
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def given = tiles.collect { tile -> "--tile ${tile}" }.join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} curate ${given} --labels input/labels --thresholds ${thresholds} --out curated ${task.ext.args ?: ''}
    mkdir -p curated/patches
    """

    stub:
    """
    mkdir -p curated/patches
    echo '{"sample": "${meta.id}", "by_layer": {}}' > curated/curation.json
    """
}
