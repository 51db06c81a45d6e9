/*
 * TILE: cut a converted sample into self-contained tiles at working resolution; tiles without tissue are recorded and left out.
 *
 * in   sample; sample.json; <sample>.zarr
 * out  tiles/ as a whole, its index, and each tile folder
 */
process TILE {
    tag "${meta.id}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), path(sample_json, stageAs: 'input/sample.json'), path(zarr, stageAs: 'input/*')

    output:
    tuple val(meta), path("${meta.id}/tiles"), emit: folder
    tuple val(meta), path("${meta.id}/tiles/tiles.json"), emit: index
    tuple val(meta), path("${meta.id}/tiles/*", type: 'dir', arity: '1..*'), emit: tiles
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} tile --sample-json ${sample_json} --zarr ${zarr} --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    for tile in t000_000 t000_001; do
        mkdir -p ${meta.id}/tiles/\$tile
        echo '{"sample": "${meta.id}"}' > ${meta.id}/tiles/\$tile/tile.json
    done
    echo '{"sample": "${meta.id}", "tiles": []}' > ${meta.id}/tiles/tiles.json
    """
}
