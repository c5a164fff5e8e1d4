// A Wishbone master that takes commands from standard input, for a simulator without a C++ interface:
//   w ADDRESS COUNT WORD...   r ADDRESS COUNT   g LIMIT   t ON   q
// Numbers are hexadecimal. Answers: the words read, one a line, then "= N" with the words acknowledged; for g the changes of the
// timeline port ("@ CYCLE VALUE", if switched on by t) and "= CYCLES IRQ".
`timescale 1ns / 1ps

module testbench;
  localparam PATIENCE = 64;
  localparam STDIN = 32'h8000_0000;

  reg clk = 0, rst = 1, cyc = 0, we = 0, record = 0;
  reg [20:0] adr = 0;
  reg [31:0] dat_w = 0;
  wire [31:0] dat_r;
  wire ack, err, irq;
  wire [`TIMELINE_BITS-1:0] timeline;
  reg [`TIMELINE_BITS-1:0] shown;

  celosia engine (
    .clk(clk), .rst(rst), .bus_cyc(cyc), .bus_stb(cyc), .bus_we(we), .bus_adr(adr), .bus_sel(4'hf), .bus_dat_w(dat_w),
    .bus_dat_r(dat_r), .bus_ack(ack), .bus_err(err), .irq(irq), .timeline(timeline)
  );

  // Inputs change and outputs are looked at in the middle of a cycle, while the clock is low.
  task tick;
    begin
      #1 clk = 1;
      #1 clk = 0;
      #1;
    end
  endtask

  integer got, n, tries, acknowledged;
  reg [7:0] command;
  reg [31:0] address, count, word, limit;

  initial begin
    repeat (2) tick;
    rst = 0;
    tick;
    command = 0;
    while (command != "q") begin
      got = $fscanf(STDIN, " %c", command);
      if (got != 1) command = "q";
      if (command == "w" || command == "r") begin
        got = $fscanf(STDIN, " %h %h", address, count);
        acknowledged = 0;
        we = command == "w";
        for (n = 0; n < count; n = n + 1) begin
          if (we) got = $fscanf(STDIN, " %h", word);
          if (acknowledged == n) begin
            adr = address[22:2] + n;
            dat_w = word;
            cyc = 1;
            #1;
            for (tries = 0; tries < PATIENCE && !ack && !err; tries = tries + 1) tick;
            if (ack) acknowledged = acknowledged + 1;
            if (!we) $display("%h", dat_r);
            tick;
            cyc = 0;
            #1;
          end
        end
        $display("= %0h", acknowledged);
      end else if (command == "g") begin
        got = $fscanf(STDIN, " %h", limit);
        n = 0;
        while (n < limit && !irq) begin
          if (record && (n == 0 || shown !== timeline)) $display("@ %0h %h", n, timeline);
          shown = timeline;
          tick;
          n = n + 1;
        end
        $display("= %0h %0h", n, irq);
      end else if (command == "t") begin
        got = $fscanf(STDIN, " %h", record);
      end
      $fflush;
    end
    $finish;
  end
endmodule
