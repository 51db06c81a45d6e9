/*
 * TEACH: label nuclei and, per membrane stain, cells by a teacher.
 *
 * in   sample; number of the batch; its tile folders; vendor_cells.parquet for the teacher `vendor`, else []
 *      weights of the teacher `cellpose`, else []
 * out  one folder of labels per tile; their sketches (tiny) alone, for calibrate
 */
process TEACH {
    tag "${meta.id} ${batch}"
    label 'process_gpu'
    ext size: { meta.size }, tiles: { tiles.size() }

    input:
    tuple val(meta), val(batch), path(tiles, stageAs: 'input/tiles/*', arity: '1..*'), path(vendor_cells, stageAs: 'input/vendor_cells.parquet')
    path nuclei_weights, stageAs: 'input/nuclei_weights'
    path cyto_weights, stageAs: 'input/cyto_weights'

    output:
    tuple val(meta), val(batch), path('labels/*', type: 'dir', arity: '1..*'), emit: labels
    tuple val(meta), val(batch), path('labels/*/sketch.json', arity: '1..*'), emit: sketches
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def given = tiles.collect { tile -> "--tile ${tile}" }.join(' ')
    def vendor = vendor_cells ? "--vendor-cells ${vendor_cells}" : ''
    def weights = [nuclei_weights ? "--nuclei-weights ${nuclei_weights}" : '', cyto_weights ? "--cyto-weights ${cyto_weights}" : ''].join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} teach ${given} ${vendor} ${weights} --out labels ${task.ext.args ?: ''}
    """

    stub:
    """
    for tile in input/tiles/*; do
        mkdir -p labels/\$(basename \$tile)
        echo '{"sample": "${meta.id}"}' > labels/\$(basename \$tile)/sketch.json
    done
    """
}
