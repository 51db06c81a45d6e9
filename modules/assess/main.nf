/*
 * ASSESS: flag spurious and inconsistent cells and measure a segmentation.
 *
 * in   sample; name of the segmentation; counts.h5ad, assign.json and transcripts.parquet of assign; its cells; its record (merge.json); sample.json; tiles/;
 *      nuclei.parquet; thresholds.json; gene_colours.csv or []; pairs of exclusive genes and markers, each [] where there are none
 * out  <segmentation>/{counts.h5ad, metrics.json, overview.png, crops/}
 */
process ASSESS {
    tag "${meta.id} ${segmentation}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(segmentation), path(counts, stageAs: 'input/assigned/*'), path(cells, stageAs: 'input/*'), path(merge_json, stageAs: 'input/merge.json'), path(sample_json, stageAs: 'input/sample.json'), path(tiles, stageAs: 'input/tiles'), path(nuclei, stageAs: 'input/nuclei.parquet'), path(thresholds, stageAs: 'input/thresholds.json'), path(colours, stageAs: 'input/gene_colours.csv')
    path marker_pairs, stageAs: 'input/marker_pairs.csv'
    path markers, stageAs: 'input/markers.csv'

    output:
    tuple val(meta), val(segmentation), path("${meta.id}/${segmentation}"), emit: folder
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def lists = [marker_pairs ? "--marker-pairs ${marker_pairs}" : '', markers ? "--markers ${markers}" : '', colours ? "--gene-colours ${colours}" : ''].join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} assess --sample-json ${sample_json} --tiles ${tiles} --counts input/assigned --cells ${cells} --nuclei ${nuclei} --thresholds ${thresholds} --merge-json ${merge_json} --segmentation ${segmentation} ${lists} --out ${meta.id}/${segmentation} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/${segmentation}
    touch ${meta.id}/${segmentation}/counts.h5ad
    echo '{"sample": "${meta.id}", "segmentation": "${segmentation}"}' > ${meta.id}/${segmentation}/metrics.json
    """
}
