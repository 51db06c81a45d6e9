/*
 * COMPARATOR_TILES: label tiles by a tile-wise comparator.
 *
 * in   sample; method; number of the batch; its tile folders; the teacher's labels of these tiles
 *      weights of `cellpose` and of `genesegnet`, else []
 * out  one folder of labels per tile
 */
process COMPARATOR_TILES {
    tag "${meta.id} ${method} ${batch}"
    label 'process_gpu'
    ext size: { meta.size }, tiles: { tiles.size() }

    input:
    tuple val(meta), val(method), val(batch), path(tiles, stageAs: 'input/tiles/*', arity: '1..*'), path(taught, stageAs: 'input/taught/*', arity: '1..*')
    path nuclei_weights, stageAs: 'input/nuclei_weights'
    path cyto_weights, stageAs: 'input/cyto_weights'
    path genesegnet_weights, stageAs: 'input/genesegnet/*'

    output:
    tuple val(meta), val(method), val(batch), path('labels/*', type: 'dir', arity: '1..*'), emit: labels
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def given = tiles.collect { tile -> "--tile ${tile}" }.join(' ')
    // The shell's pattern stands for the one file there, whatever its name: its suffix says what it is.
    def weights = [
        nuclei_weights ? "--nuclei-weights ${nuclei_weights}" : '',
        cyto_weights ? "--cyto-weights ${cyto_weights}" : '',
        genesegnet_weights ? '--genesegnet-weights input/genesegnet/*' : '',
    ].join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} comparator tiles --method ${method} ${given} --teacher-labels input/taught ${weights} --out labels ${task.ext.args ?: ''}
    """

    stub:
    """
    for tile in input/tiles/*; do
        mkdir -p labels/\$(basename \$tile)
        echo '{"sample": "${meta.id}"}' > labels/\$(basename \$tile)/meta.json
    done
    """
}
