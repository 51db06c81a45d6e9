/*
 * SEGMENT: segment tiles with the network; a tile gives the cells that its core owns.
 *
 * in   sample; number of the batch; its tile folders; weights
 * out  one folder of cells per tile
 */
process SEGMENT {
    tag "${meta.id} ${batch}"
    label 'process_gpu'
    ext size: { meta.size }, tiles: { tiles.size() }

    input:
    tuple val(meta), val(batch), path(tiles, stageAs: 'input/tiles/*', arity: '1..*'), path(model, stageAs: 'input/model/*')

    output:
    tuple val(meta), val(batch), path('cells/*', type: 'dir', arity: '1..*'), emit: cells
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def given = tiles.collect { tile -> "--tile ${tile}" }.join(' ')
    // The shell's pattern stands for the one file there, whatever its name.
    """
    istseg --expect-version ${workflow.manifest.version} segment ${given} --model input/model/* --out cells ${task.ext.args ?: ''}
    """

    stub:
    """
    for tile in input/tiles/*; do
        mkdir -p cells/\$(basename \$tile)
        echo '{"sample": "${meta.id}"}' > cells/\$(basename \$tile)/meta.json
    done
    """
}
