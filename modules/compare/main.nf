/*
 * COMPARE: all segmentations of a sample against each other and against annotated cells.
 *
 * in   sample; names of the segmentations, their cells and their transcripts.parquet of assign in the same order; sample.json; annotated cells or [] and their unit or ''
 * out  comparison.json; annotated_cells.parquet when there are annotations
 */
process COMPARE {
    tag "${meta.id}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(segmentations), path(cells, stageAs: 'input/cells?/*', arity: '1..*'), path(transcripts, stageAs: 'input/transcripts?/*', arity: '1..*'), path(sample_json, stageAs: 'input/sample.json'), path(annotations, stageAs: 'input/annotations'), val(unit)

    output:
    tuple val(meta), path("${meta.id}/comparison.json"), emit: record
    tuple val(meta), path("${meta.id}/annotated_cells.parquet"), emit: annotated, optional: true
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def files = [segmentations, cells, transcripts].transpose().collect { name, polygons, table -> "--cells ${name}=${polygons} --transcripts ${name}=${table}" }.join(' ')
    def truth = annotations ? "--annotations ${annotations}${unit ? " --annotations-unit ${unit}" : ''}" : ''
    """
    istseg --expect-version ${workflow.manifest.version} compare --sample-json ${sample_json} ${files} ${truth} --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}
    echo '{"sample": "${meta.id}", "segmentations": ["${segmentations.join('", "')}"]}' > ${meta.id}/comparison.json
    """
}
