/*
 * COMPARATOR_MERGE: put the cells of a tile-wise comparator together, each once.
 *
 * in   sample; method; the tiles' labels; tiles.json
 * out  <method>.cells.parquet (µm), <method>.labels.zarr, <method>.merge.json
 */
process COMPARATOR_MERGE {
    tag "${meta.id} ${method}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(labels, stageAs: 'input/labels/*', arity: '1..*'), path(tiles_json, stageAs: 'input/tiles.json')

    output:
    tuple val(meta), val(method), path("${meta.id}/${method}.cells.parquet"), emit: cells
    tuple val(meta), val(method), path("${meta.id}/${method}.labels.zarr"), emit: labels
    tuple val(meta), val(method), path("${meta.id}/${method}.merge.json"), emit: record
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} comparator merge --segmentation ${method} --tiles-json ${tiles_json} --labels input/labels --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/${method}.labels.zarr
    touch ${meta.id}/${method}.cells.parquet
    echo '{"sample": "${meta.id}"}' > ${meta.id}/${method}.merge.json
    """
}
