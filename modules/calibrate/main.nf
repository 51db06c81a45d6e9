/*
 * CALIBRATE: derive a sample's thresholds from the sketches of all its tiles.
 *
 * in   sample; the sketches of its tiles
 * out  thresholds.json
 */
process CALIBRATE {
    tag "${meta.id}"
    label 'process_single'
    ext size: { meta.size }

    input:
    tuple val(meta), path(sketches, stageAs: 'input/?/*', arity: '1..*')

    output:
    tuple val(meta), path("${meta.id}/qc/thresholds.json"), emit: thresholds
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} calibrate --labels input --out ${meta.id}/qc ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/qc
    echo '{"sample": "${meta.id}"}' > ${meta.id}/qc/thresholds.json
    """
}
