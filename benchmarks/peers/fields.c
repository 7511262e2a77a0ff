/* Right-hand sides and Jacobians in C, for the problems that are no reaction networks.
 *
 * `p` are the parameters in the order of the leaves of `Problem.args`. A Jacobian is given by its
 * columns, J[column][row], and is zero on entry; the columns of a banded matrix are shifted so
 * that the same indices hold.
 */
#include <math.h>

void robertson(double t, const double *y, const double *p, double *f) {
  double a = p[0] * y[0], b = p[1] * y[1] * y[2], c = p[2] * y[1] * y[1];
  f[0] = b - a;
  f[1] = a - b - c;
  f[2] = c;
}

void robertson_jacobian(double t, const double *y, const double *p, double **J) {
  double b1 = p[1] * y[2], b2 = p[1] * y[1], c1 = 2 * p[2] * y[1];
  J[0][0] = -p[0];
  J[0][1] = p[0];
  J[1][0] = b1;
  J[1][1] = -b1 - c1;
  J[1][2] = c1;
  J[2][0] = b2;
  J[2][1] = -b2;
}

void van_der_pol(double t, const double *y, const double *p, double *f) {
  f[0] = y[1];
  f[1] = p[0] * ((1 - y[0] * y[0]) * y[1]) - y[0];
}

void van_der_pol_jacobian(double t, const double *y, const double *p, double **J) {
  J[0][1] = -2 * p[0] * y[0] * y[1] - 1;
  J[1][0] = 1;
  J[1][1] = p[0] * (1 - y[0] * y[0]);
}

void oregonator(double t, const double *y, const double *p, double *f) {
  double s = p[0], q = p[1], w = p[2];
  f[0] = s * (y[1] + y[0] * (1 - q * y[0] - y[1]));
  f[1] = (y[2] - (1 + y[0]) * y[1]) / s;
  f[2] = w * (y[0] - y[2]);
}

void oregonator_jacobian(double t, const double *y, const double *p, double **J) {
  double s = p[0], q = p[1], w = p[2];
  J[0][0] = s * (1 - 2 * q * y[0] - y[1]);
  J[0][1] = -y[1] / s;
  J[0][2] = w;
  J[1][0] = s * (1 - y[0]);
  J[1][1] = -(1 + y[0]) / s;
  J[2][1] = 1 / s;
  J[2][2] = -w;
}

static const double k_after = -3.2617188;

void issue_368(double t, const double *y, const double *p, double *f) {
  f[0] = expm1(p[2] - y[0] - y[1]) * exp(p[0]);
  f[1] = expm1(k_after - y[1]) * exp(p[1]);
}

void issue_368_jacobian(double t, const double *y, const double *p, double **J) {
  double d = -exp(p[2] - y[0] - y[1] + p[0]);
  J[0][0] = d;
  J[1][0] = d;
  J[1][1] = -exp(k_after - y[1] + p[1]);
}

/* Cells of (u, v), with u = 1 and v = 3 at both ends. */
static void brusselator(int cells, const double *y, const double *p, double *f) {
  double a = p[0], b = p[1], d = p[2] * (cells + 1.0) * (cells + 1.0);
  for (int i = 0; i < cells; i++) {
    double u = y[2 * i], v = y[2 * i + 1], product = u * u * v;
    double u_left = i ? y[2 * i - 2] : 1, u_right = i + 1 < cells ? y[2 * i + 2] : 1;
    double v_left = i ? y[2 * i - 1] : 3, v_right = i + 1 < cells ? y[2 * i + 3] : 3;
    f[2 * i] = a + product - (b + 1) * u + d * (u_right - 2 * u + u_left);
    f[2 * i + 1] = b * u - product + d * (v_right - 2 * v + v_left);
  }
}

static void brusselator_jacobian(int cells, const double *y, const double *p, double **J) {
  double b = p[1], d = p[2] * (cells + 1.0) * (cells + 1.0);
  for (int i = 0; i < 2 * cells; i += 2) {
    double uv = 2 * y[i] * y[i + 1], uu = y[i] * y[i];
    J[i][i] = uv - (b + 1) - 2 * d;
    J[i][i + 1] = b - uv;
    J[i + 1][i] = uu;
    J[i + 1][i + 1] = -uu - 2 * d;
  }
  for (int j = 2; j < 2 * cells; j++) {
    J[j][j - 2] = d;
    J[j - 2][j] = d;
  }
}

void brusselator_80(double t, const double *y, const double *p, double *f) {
  brusselator(40, y, p, f);
}

void brusselator_80_jacobian(double t, const double *y, const double *p, double **J) {
  brusselator_jacobian(40, y, p, J);
}

void brusselator_400(double t, const double *y, const double *p, double *f) {
  brusselator(200, y, p, f);
}

void brusselator_400_jacobian(double t, const double *y, const double *p, double **J) {
  brusselator_jacobian(200, y, p, J);
}

/* The neural field: tanh layers 8 -> 32 -> 32 -> 8, and a linear part after the parameters. */
enum { N = 8, W = 32 };

typedef struct {
  const double *w1, *b1, *w2, *b2, *w3, *b3, *linear;
} Layers;

static Layers layers_of(const double *p) {
  Layers l = {.w1 = p};
  l.b1 = l.w1 + W * N;
  l.w2 = l.b1 + W;
  l.b2 = l.w2 + W * W;
  l.w3 = l.b2 + W;
  l.b3 = l.w3 + N * W;
  l.linear = l.b3 + N;
  return l;
}

static void hidden(Layers l, const double *y, double *h1, double *h2) {
  for (int i = 0; i < W; i++) {
    double x = l.b1[i];
    for (int j = 0; j < N; j++) x += l.w1[i * N + j] * y[j];
    h1[i] = tanh(x);
  }
  for (int i = 0; i < W; i++) {
    double x = l.b2[i];
    for (int j = 0; j < W; j++) x += l.w2[i * W + j] * h1[j];
    h2[i] = tanh(x);
  }
}

void neural(double t, const double *y, const double *p, double *f) {
  Layers l = layers_of(p);
  double h1[W], h2[W];
  hidden(l, y, h1, h2);
  for (int i = 0; i < N; i++) {
    double x = l.b3[i];
    for (int j = 0; j < W; j++) x += l.w3[i * W + j] * h2[j];
    for (int j = 0; j < N; j++) x += l.linear[i * N + j] * y[j];
    f[i] = x;
  }
}

void neural_jacobian(double t, const double *y, const double *p, double **J) {
  Layers l = layers_of(p);
  double h1[W], h2[W], d1[W][N], d2[W][N];
  hidden(l, y, h1, h2);
  for (int i = 0; i < W; i++)
    for (int j = 0; j < N; j++) d1[i][j] = (1 - h1[i] * h1[i]) * l.w1[i * N + j];
  for (int i = 0; i < W; i++) {
    double row[N] = {0};
    for (int k = 0; k < W; k++)
      for (int j = 0; j < N; j++) row[j] += l.w2[i * W + k] * d1[k][j];
    for (int j = 0; j < N; j++) d2[i][j] = (1 - h2[i] * h2[i]) * row[j];
  }
  for (int i = 0; i < N; i++) {
    double row[N];
    for (int j = 0; j < N; j++) row[j] = l.linear[i * N + j];
    for (int k = 0; k < W; k++)
      for (int j = 0; j < N; j++) row[j] += l.w3[i * W + k] * d2[k][j];
    for (int j = 0; j < N; j++) J[j][i] = row[j];
  }
}
