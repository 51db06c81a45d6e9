/*
 * PROSEG: run Proseg 3 on a whole sample, in the plane. It takes no seed: two runs differ.
 *
 * in   sample; method; what comparator prepare wrote
 * out  output/{transcripts.parquet, cells.geojson.gz, version.txt}
 */
process PROSEG {
    tag "${meta.id} ${method}"
    label 'process_medium'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(prepared, stageAs: 'input/prepared')

    output:
    tuple val(meta), val(method), path('output', type: 'dir'), emit: folder
    tuple val(task.process), val('proseg'), eval('(proseg --version || echo "proseg unknown") | cut -d " " -f 2'), emit: versions, topic: versions

    script:
    """
    mkdir output
    proseg --version > output/version.txt
    proseg input/prepared/transcripts.csv --gene-column gene --transcript-id-column transcript_id --x-column x --y-column y --z-column z --ignore-z-coord --cell-id-column prior --cell-id-unassigned 0 --nthreads ${task.cpus} --output-path output --output-transcript-metadata transcripts.parquet --output-cell-polygons cells.geojson.gz --output-spatialdata unused.zarr --exclude-spatialdata-transcripts ${task.ext.args ?: ''}
    rm -r output/unused.zarr
    """

    stub:
    """
    mkdir output
    touch output/transcripts.parquet
    """
}
