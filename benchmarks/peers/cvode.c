/* CVODE (BDF, Newton, direct linear algebra) on a right-hand side and Jacobian in C.
 *
 * `solve_lanes` solves `lanes` problems that differ in parameters and start, `repeats` times, in
 * one solver that is made once and reinitialised; the clock does not run while it is made.
 */
#include <cvode/cvode.h>
#include <nvector/nvector_serial.h>
#include <stdlib.h>
#include <string.h>
#include <sunlinsol/sunlinsol_band.h>
#include <sunlinsol/sunlinsol_dense.h>
#include <sunmatrix/sunmatrix_band.h>
#include <sunmatrix/sunmatrix_dense.h>
#include <time.h>

typedef void (*Field)(double, const double *, const double *, double *);
typedef void (*Jacobian)(double, const double *, const double *, double **);

typedef struct {
  Field field;
  Jacobian jacobian;
  const double *parameters;
  double **columns;
} Problem;

static int evaluate(realtype t, N_Vector y, N_Vector f, void *data) {
  Problem *problem = data;
  problem->field(t, NV_DATA_S(y), problem->parameters, NV_DATA_S(f));
  return 0;
}

static int differentiate(realtype t, N_Vector y, N_Vector f, SUNMatrix J, void *data, N_Vector a,
                         N_Vector b, N_Vector c) {
  Problem *problem = data;
  double **columns = problem->columns;
  if (SUNMatGetID(J) == SUNMATRIX_BAND)
    for (long j = 0; j < SM_COLUMNS_B(J); j++) columns[j] = SM_COLUMN_B(J, j) - j;
  else
    columns = SM_COLS_D(J);
  problem->jacobian(t, NV_DATA_S(y), problem->parameters, columns);
  return 0;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* `bands` is NULL for a dense Jacobian. Strides are 0 for what the lanes share. Writes `ys` of
 * shape (lanes, times, n), one time in `seconds` for each repeat, and to `stats` accepted steps,
 * failed attempts, evaluations of the field and of the Jacobian, of the first lane. Returns the
 * number of lanes that failed; their remaining rows are not written. */
int solve_lanes(Field field, Jacobian jacobian, int n, const int *bands, int lanes, int repeats,
                const double *parameters, long parameter_stride, const double *y0, long y0_stride,
                double t0, const double *ts, int times, double rtol, double atol, long max_steps,
                double *ys, double *seconds, long *stats) {
  SUNContext context;
  SUNContext_Create(NULL, &context);
  Problem problem = {field, jacobian, parameters, malloc(n * sizeof(double *))};
  N_Vector y = N_VNew_Serial(n, context);
  SUNMatrix matrix = bands ? SUNBandMatrix(n, bands[1], bands[0], context)
                           : SUNDenseMatrix(n, n, context);
  SUNLinearSolver algebra =
      bands ? SUNLinSol_Band(y, matrix, context) : SUNLinSol_Dense(y, matrix, context);
  void *cvode = CVodeCreate(CV_BDF, context);
  memcpy(NV_DATA_S(y), y0, n * sizeof(double));
  CVodeInit(cvode, evaluate, t0, y);
  CVodeSStolerances(cvode, rtol, atol);
  CVodeSetUserData(cvode, &problem);
  CVodeSetLinearSolver(cvode, algebra, matrix);
  CVodeSetJacFn(cvode, differentiate);
  CVodeSetMaxNumSteps(cvode, max_steps);
  CVodeSetErrFile(cvode, NULL);

  int failed = 0;
  for (int repeat = 0; repeat < repeats; repeat++) {
    failed = 0;
    double began = now();
    for (int lane = 0; lane < lanes; lane++) {
      problem.parameters = parameters + lane * parameter_stride;
      memcpy(NV_DATA_S(y), y0 + lane * y0_stride, n * sizeof(double));
      CVodeReInit(cvode, t0, y);
      double *row = ys + (long)lane * times * n;
      for (int i = 0; i < times; i++, row += n) {
        double t;
        if (CVode(cvode, ts[i], y, &t, CV_NORMAL) < 0) {
          failed++;
          break;
        }
        memcpy(row, NV_DATA_S(y), n * sizeof(double));
      }
      if (lane == 0) {
        long convergence_failures = 0;
        CVodeGetNumSteps(cvode, &stats[0]);
        CVodeGetNumErrTestFails(cvode, &stats[1]);
        CVodeGetNumNonlinSolvConvFails(cvode, &convergence_failures);
        stats[1] += convergence_failures;
        CVodeGetNumRhsEvals(cvode, &stats[2]);
        CVodeGetNumJacEvals(cvode, &stats[3]);
      }
    }
    seconds[repeat] = now() - began;
  }
  CVodeFree(&cvode);
  SUNLinSolFree(algebra);
  SUNMatDestroy(matrix);
  N_VDestroy(y);
  free(problem.columns);
  SUNContext_Free(&context);
  return failed;
}
